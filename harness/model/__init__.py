"""A virtio block device in Python, written from the specification.

It shares only the constants of `harness.virtio` and the disk fields of `harness.diskspec` with the
driver, and runs as a process of its own.
"""
