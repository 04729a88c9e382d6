"""Virtio over PCI: device ids, capabilities, registers (virtio 4.1)."""

from __future__ import annotations

import struct
from enum import IntEnum

VENDOR_ID = 0x1AF4
MODERN_DEVICE_ID = 0x1042
TRANSITIONAL_DEVICE_ID = 0x1001

CAP_VENDOR = 0x09
"""PCI capability id "vendor-specific", the id of all virtio capabilities."""

CAP = struct.Struct("<BBBBBB2xII")
"""Virtio capability: cap_vndr, cap_next, cap_len, cfg_type, bar, id, (padding), offset, length."""

VENDOR = 0x00
DEVICE = 0x02
COMMAND = 0x04
COMMAND_IO = 0x1
COMMAND_MEMORY = 0x2
COMMAND_DECODE = COMMAND_IO | COMMAND_MEMORY
COMMAND_MASTER = 0x4
COMMAND_INTX_DISABLE = 0x400
STATUS = 0x06
STATUS_INTERRUPT = 0x8
STATUS_CAPABILITIES = 0x10
REVISION = 0x08
HEADER_TYPE = 0x0E
BAR_0 = 0x10
BARS = 6
SUBSYSTEM_VENDOR = 0x2C
SUBSYSTEM = 0x2E
CAPABILITIES = 0x34
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D
HEADER_SIZE = 0x40
"""Registers of a function's configuration space, and their bits (PCI Local Bus 3.0, 6.1).

Capabilities start behind the header. COMMAND_DECODE are the bits that enable decoding of
accesses to BARs.
"""

BRIDGE_BUSES = 0x18
BRIDGE_MEMORY = 0x20
BRIDGE_CONTROL = 0x3E
BRIDGE_RESET = 0x40
"""Registers of a bridge, and the bit of its control that resets the bus below it (PCI-to-PCI
Bridge 1.2, 3.2.5)."""

BAR_IO = 0x1
BAR_TYPE = 0x6
BAR_64 = 0x4
BAR_PREFETCHABLE = 0x8
BAR_IO_FLAGS = 0x3
BAR_MEMORY_FLAGS = 0xF
"""Low bits of a BAR (PCI Local Bus 3.0, 6.2.5.1).

BAR_IO is set in I/O space. The others are for memory space: BAR_TYPE is the mask of the type,
BAR_64 the type of a BAR of two registers. *_FLAGS are all bits below the address.
"""

CAP_POWER = 0x01
CAP_EXPRESS = 0x10
CAP_MSIX = 0x11
"""PCI capability ids."""

EXTENDED = 0x100
EXT_CAP_SR_IOV = 0x10
"""Offset of the first PCI Express extended capability; id of single root I/O virtualization."""

SR_IOV_CONTROL = 0x08
SR_IOV_INITIAL_VFS = 0x0C
SR_IOV_TOTAL_VFS = 0x0E
SR_IOV_NUM_VFS = 0x10
SR_IOV_DEVICE = 0x1A
SR_IOV_PAGE_SIZES = 0x1C
SR_IOV_BAR_0 = 0x24
SR_IOV_SIZE = 0x40
"""Offsets in the SR-IOV capability, and its size, in bytes (PCI Express 9.3.3)."""

SR_IOV_VF_ENABLE = 1 << 0
SR_IOV_VF_MEMORY = 1 << 3
"""Bits of SR-IOV Control: virtual functions are there, and decode their BARs."""

MSIX_ENABLE = 1 << 15
MSIX_FUNCTION_MASK = 1 << 14
MSIX_TABLE_SIZE = 0x7FF
"""Bits of MSI-X Message Control (PCI Local Bus 3.0, 6.8.2)."""

MSIX_ENTRY = struct.Struct("<QII")
"""An MSI-X table entry: message address, message data, vector control."""

MSIX_ENTRY_MASKED = 1
"""The mask bit of vector control."""

EXPRESS_RESET = 1 << 15
"""The bit of PCI Express Device Control that starts a function level reset."""

NO_VECTOR = 0xFFFF
ISR_QUEUE = 1
ISR_CONFIG = 2


class CapType(IntEnum):
    """Values of cfg_type in a virtio PCI capability."""

    COMMON_CFG = 1
    NOTIFY_CFG = 2
    ISR_CFG = 3
    DEVICE_CFG = 4
    PCI_CFG = 5
    SHARED_MEMORY_CFG = 8
    VENDOR_CFG = 9


COMMON_REGISTERS: dict[str, tuple[int, int]] = {
    "device_feature_select": (0x00, 4),
    "device_feature": (0x04, 4),
    "driver_feature_select": (0x08, 4),
    "driver_feature": (0x0C, 4),
    "config_msix_vector": (0x10, 2),
    "num_queues": (0x12, 2),
    "device_status": (0x14, 1),
    "config_generation": (0x15, 1),
    "queue_select": (0x16, 2),
    "queue_size": (0x18, 2),
    "queue_msix_vector": (0x1A, 2),
    "queue_enable": (0x1C, 2),
    "queue_notify_off": (0x1E, 2),
    "queue_desc": (0x20, 8),
    "queue_driver": (0x28, 8),
    "queue_device": (0x30, 8),
    "queue_notif_config_data": (0x38, 2),
    "queue_reset": (0x3A, 2),
    "admin_queue_index": (0x3C, 2),
    "admin_queue_num": (0x3E, 2),
}
"""The common configuration structure: name -> offset and size in bytes (virtio 4.1.4.3)."""

LEGACY_REGISTERS: dict[str, tuple[int, int]] = {
    "device_features": (0x00, 4),
    "driver_features": (0x04, 4),
    "queue_address": (0x08, 4),
    "queue_size": (0x0C, 2),
    "queue_select": (0x0E, 2),
    "queue_notify": (0x10, 2),
    "device_status": (0x12, 1),
    "isr_status": (0x13, 1),
    "config_msix_vector": (0x14, 2),
    "queue_msix_vector": (0x16, 2),
}
"""The legacy header in BAR 0: name -> offset and size in bytes (virtio 4.1.4.10).

The vector registers exist only while MSI-X is enabled.
"""

LEGACY_CONFIG = 0x14
LEGACY_CONFIG_MSIX = 0x18
"""Offsets in BAR 0 of the device configuration: with MSI-X disabled, and enabled."""

LEGACY_PAGE = 4096
"""Unit of queue_address and alignment of the legacy rings, in bytes."""
