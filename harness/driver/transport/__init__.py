"""The ways a virtio device shows its registers: one module for each (virtio 4)."""
