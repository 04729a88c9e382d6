# The icon is data of Haiku's virtio_block driver:
# Copyright 2013, Jérôme Duval, korli@users.berlios.de.
# Distributed under the terms of the MIT License.
"""The drive's icon (Haiku Vector Icon Format) and the structure that asks for it."""

from __future__ import annotations

from dataclasses import dataclass

ICON_NAME = "devices/drive-harddisk"

DRIVE_ICON = bytes.fromhex(
    "6e6369660803010000020016023cc7ee389bc0ba16573e39b04977c8"
    "42adc700ffffd3020006023c96323a4d3fbafc013d5a974b57a54984"
    "4d00474747ffa5a0a002001602bc592fbb29a73c0ce4bd0b7c4892c0"
    "4b7966007dffd40200060238dbb4399733bc4a333ba542486e6649ee"
    "7b00596756ffebb2b203a7ff0003ff0000040180070a06223c224944"
    "5b5a3e5a3139250a04223c444b5a3139250a04444b445b5a3e5a310a"
    "04223c2249445b444b08022743b814c1f10802264329440a05445d49"
    "5d603e5a3b5b3f080a070106000a0001001001178400040a01010100"
    "0a020102000a030103000a0401041001178520040a0601053024b399"
    "01178200040a0501053020b2e60117820004"
)

DEVICE_ICON_SIZE = 16
"""Size of device_icon with 64-bit pointers: the only length that B_GET_VECTOR_ICON accepts."""


@dataclass
class DeviceIcon:
    """Haiku's device_icon: `icon_size` is the room in `icon_data`, later the icon's size (bytes).

    `icon_data` is not written if it is too small for the icon: a first call returns
    the size, a second one the icon.
    """

    icon_size: int = 0
    icon_data: bytearray | None = None
