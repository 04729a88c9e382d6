"""Buses: access to registers and device-visible memory from where the driver runs."""
