"""A virtio block device in Python, written from the specification and served over vhost-user.

It shares nothing with the driver but the constants of `harness.virtio` and the
words for a disk in `harness.diskspec`, and runs as a process of its own.
"""
