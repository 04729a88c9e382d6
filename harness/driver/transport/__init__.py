"""Virtio transports: a module for each (virtio 4)."""
