"""Virtio over MMIO: the register block (virtio 4.2.2)."""

from __future__ import annotations

MAGIC = 0x74726976
VERSION = 2
LEGACY_VERSION = 1
CONFIG = 0x100
"""Offset of the device configuration space."""

REGISTERS: dict[str, int] = {
    "MagicValue": 0x000,
    "Version": 0x004,
    "DeviceID": 0x008,
    "VendorID": 0x00C,
    "DeviceFeatures": 0x010,
    "DeviceFeaturesSel": 0x014,
    "DriverFeatures": 0x020,
    "DriverFeaturesSel": 0x024,
    "QueueSel": 0x030,
    "QueueSizeMax": 0x034,
    "QueueSize": 0x038,
    "QueueReady": 0x044,
    "QueueNotify": 0x050,
    "InterruptStatus": 0x060,
    "InterruptACK": 0x064,
    "Status": 0x070,
    "QueueDescLow": 0x080,
    "QueueDescHigh": 0x084,
    "QueueDriverLow": 0x090,
    "QueueDriverHigh": 0x094,
    "QueueDeviceLow": 0x0A0,
    "QueueDeviceHigh": 0x0A4,
    "SHMSel": 0x0AC,
    "SHMLenLow": 0x0B0,
    "SHMLenHigh": 0x0B4,
    "SHMBaseLow": 0x0B8,
    "SHMBaseHigh": 0x0BC,
    "QueueReset": 0x0C0,
    "ConfigGeneration": 0x0FC,
}
"""Registers: name -> offset in bytes; each has 32 bits."""

LEGACY_REGISTERS: dict[str, int] = {
    "MagicValue": 0x000,
    "Version": 0x004,
    "DeviceID": 0x008,
    "VendorID": 0x00C,
    "HostFeatures": 0x010,
    "HostFeaturesSel": 0x014,
    "GuestFeatures": 0x020,
    "GuestFeaturesSel": 0x024,
    "GuestPageSize": 0x028,
    "QueueSel": 0x030,
    "QueueNumMax": 0x034,
    "QueueNum": 0x038,
    "QueueAlign": 0x03C,
    "QueuePFN": 0x040,
    "QueueNotify": 0x050,
    "InterruptStatus": 0x060,
    "InterruptACK": 0x064,
    "Status": 0x070,
}
"""Registers of a legacy device: name -> offset in bytes; each has 32 bits (virtio 4.2.4)."""

INTERRUPT_USED = 1
INTERRUPT_CONFIG = 2
"""Bits of InterruptStatus and InterruptACK."""

LEGACY_PAGE = 4096
"""Page size that our driver sets on a legacy device, in bytes."""
