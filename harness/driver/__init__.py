"""The reference driver. It imports the standard library only, because it also runs in guests."""
