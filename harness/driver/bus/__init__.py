"""How registers and device-visible memory are reached from where the driver runs."""
