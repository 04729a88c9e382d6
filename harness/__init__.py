"""A test harness and conformance suite for virtio block devices.

This package must import nothing when it is imported itself: `harness.virtio`,
`harness.driver` and `harness.guest` are sent into guests that have only
Python's standard library.
"""
