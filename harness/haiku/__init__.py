# Derived from Haiku's virtio_block driver:
# Copyright 2013, Jérôme Duval, korli@users.berlios.de.
# Distributed under the terms of the MIT License.
"""Haiku's disk on top of a `Driver`: open, io, ioctl, geometry, media status.

It stands on the driver's interface and knows nothing beneath, so the same
object works beside the device, in a guest, or at the far end of a channel.
"""
