"""The reference driver. Python's standard library only: the same files run in a guest and here."""
