"""Byte streams to the agent in a guest, from the host's side; independent of machine and driver."""
