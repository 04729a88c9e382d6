"""The suite: exact tests of single statements of virtio 1.4, one module for each theme.

It sees the fixture `plug`, the driver's interface and the specification as
data, and never QEMU, sockets or paths.
"""
