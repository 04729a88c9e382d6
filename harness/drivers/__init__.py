"""Launchers of drivers: each starts a driver by name, and makes it work on a disk of the model.

`base` has the types, `registry` the names. docs/your-driver.md has the file format for drivers of
the user.
"""
