"""A byte stream to the agent in a guest, from the host's side. Knows no machines, no drivers."""
