"""Devices in a guest, driven by the agent in the guest."""
