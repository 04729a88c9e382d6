"""Errors of a driver.

Every error has a `state`: what the driver could read of itself and of the
device at that moment, as plain values, which can be sent from a guest to the
report of a failed test.
"""

from __future__ import annotations

from typing import Any


class DriverError(Exception):
    """The driver cannot do what was requested. Base class of its errors."""

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
    """An argument of the call is invalid or not possible here."""


class NoDeviceError(DriverError):
    """The device does not exist, or is not a virtio block device that this driver supports."""


class DeviceTimeoutError(DriverError):
    """The device did not respond in time."""


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
"""Errors by class name, to send them over a channel."""
