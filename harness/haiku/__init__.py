# Derived from Haiku's virtio_block driver:
# Copyright 2013, Jérôme Duval, korli@users.berlios.de.
# Distributed under the terms of the MIT License.
"""Haiku's disk driver on top of a `Driver`: open, io, ioctl, geometry, media status.

It uses the interface of the driver only, so it works with a driver in this
process, in a guest, or at the other end of a channel.
"""
