"""Virtqueues as memory that driver and device share: one module for each format (virtio 2.7)."""
