"""Whims of the transport, and of the time that the device takes for what is no request."""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.model.block import Block
from harness.model.device import Device
from harness.model.vhost import Connection
from harness.model.whims.registry import Original, Whim, file, whim
from harness.virtio.features import Feature
from harness.virtio.vhost_user import ProtocolFeature

NEEDED = (ProtocolFeature.CONFIG, ProtocolFeature.MQ)


def _lacking(name: str, *lacking: ProtocolFeature) -> None:
    """File a back-end without these protocol features."""
    bits = sum(feature.mask for feature in lacking)

    def change(original: Original, connection: Connection) -> int:
        return int(original(connection)) & ~bits

    def keep(original: Original, block: Block) -> int:
        # The device is suspended by a status, which such a back-end is not told.
        unusable = Feature.SUSPEND.mask if ProtocolFeature.STATUS in lacking else 0
        return int(original(block)) & ~unusable

    text = f"vhost-user: {', '.join(feature.name for feature in lacking)} not offered"
    parts: list[tuple[Callable[..., object], Callable[..., object]]] = [
        (Connection.protocol_features, change),
        (Block.offered, keep),
    ]
    file(Whim(name, text, family="protocol", parts=parts))


_lacking("no-reply-ack", ProtocolFeature.REPLY_ACK)
_lacking("no-status", ProtocolFeature.STATUS)
_lacking("no-backend-req", ProtocolFeature.BACKEND_REQ)
_lacking("no-reset-device", ProtocolFeature.RESET_DEVICE)
_lacking("few-protocol-features", *(bit for bit in ProtocolFeature if bit not in NEEDED))


@whim(Device.reset, text="a reset takes 30 ms")
def slow_reset(original: Original, device: Device) -> None:
    time.sleep(0.03)
    original(device)


@whim(Device.read_config, text="reading the configuration takes 2 ms")
def slow_config(original: Original, device: Device) -> bytes:
    time.sleep(0.002)
    return bytes(original(device))


@whim(Device.set_status, text="a change of the device status takes 5 ms")
def slow_status(original: Original, device: Device, value: int) -> None:
    time.sleep(0.005)
    original(device, value)


@whim(Device.suspend, text="it takes 20 ms until the device is suspended")
def slow_suspend(original: Original, device: Device, value: int) -> None:
    time.sleep(0.02)
    original(device, value)
