"""Tools that break the rules for drivers, and judge whether the device was harmed."""
