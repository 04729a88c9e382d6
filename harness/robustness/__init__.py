"""Means to break the rules of a driver, and to see whether the device was harmed."""
