"""Illegal devices, and what they do to drivers: docs/your-driver.md."""
