"""What can go wrong between a driver and a device.

Every error carries `state`: what the driver could read of itself and of the
device at that moment, in plain values, so that it survives the way from a
guest to the report of a failed test.
"""

from __future__ import annotations

from typing import Any


class DriverError(Exception):
    """The driver cannot do what it was asked."""

    def __init__(self, message: str, state: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.state = state or {}

    def __str__(self) -> str:
        if not self.state:
            return self.message
        shown = ", ".join(f"{name}={value}" for name, value in self.state.items())
        return f"{self.message} [{shown}]"


class BadArgumentError(DriverError):
    """The caller asked for something that makes no sense here."""


class NoDeviceError(DriverError):
    """There is no such device, or it is not a virtio block device this driver can take."""


class DeviceTimeoutError(DriverError):
    """The device did not do in time what the driver waited for."""


class FeaturesRefusedError(DriverError):
    """The device cleared FEATURES_OK: it refuses this set of features (virtio 3.1.1)."""


ERRORS: dict[str, type[DriverError]] = {
    error.__name__: error
    for error in (
        DriverError,
        BadArgumentError,
        NoDeviceError,
        DeviceTimeoutError,
        FeaturesRefusedError,
    )
}
"""The errors by name, for the way across a channel."""
