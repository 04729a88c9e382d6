"""The conformance suite: exact tests of single statements of virtio 1.4, one module per subject.

A test uses the fixture `plug`, the interface of the reference driver and the data of
`harness.virtio`. No test uses QEMU, a socket or a path.
"""
