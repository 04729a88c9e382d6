"""The legacy interface of a transitional function (virtio 4.1.4.10)."""

from __future__ import annotations

from collections.abc import Callable

from harness.model.pci.common import CommonConfiguration
from harness.model.pci.registers import Register, Registers
from harness.model.ring import Addresses
from harness.virtio.blk import CONFIG_SIZE
from harness.virtio.features import Feature, mask
from harness.virtio.pci import (
    LEGACY_CONFIG,
    LEGACY_CONFIG_MSIX,
    LEGACY_PAGE,
    LEGACY_REGISTERS,
    NO_VECTOR,
)
from harness.virtio.ring import legacy_areas


class LegacyInterface(CommonConfiguration):
    """The legacy header, and the device configuration behind it.

    It has the registers of the common configuration under other names, without FEATURES_OK.
    """

    _legacy: Registers

    def _legacy_registers(self) -> dict[str, Register]:
        accesses: dict[str, tuple[Callable[[], int], Callable[[int], None] | None]] = {
            "device_features": (lambda: self._legacy_offered & 0xFFFF_FFFF, None),
            "driver_features": (
                lambda: self._driver_feature.get(0, 0),
                self._write_legacy_features,
            ),
            "queue_address": (
                lambda: self._selected(lambda q, r: r.page),
                self._write_queue_page,
            ),
            "queue_size": (lambda: self._selected(lambda q, r: self._largest_queue), None),
            "queue_select": (
                lambda: self._queue_select,
                lambda value: setattr(self, "_queue_select", value),
            ),
            "queue_notify": (lambda: 0, self._legacy_notify),
            "device_status": (lambda: self.device.status, self._write_legacy_status),
            "isr_status": (lambda: self.interrupts.read_isr(), None),
            "config_msix_vector": (lambda: self._config_vector, self._write_config_vector),
            "queue_msix_vector": (
                lambda: self._selected(lambda q, r: r.vector, NO_VECTOR),
                self._write_queue_vector,
            ),
        }
        return {
            name: Register(offset, width, *accesses[name])
            for name, (offset, width) in LEGACY_REGISTERS.items()
        }

    @property
    def _legacy_offered(self) -> int:
        scsi = Feature.BLK_SCSI.mask if self.device.block.spec.scsi else 0
        return self.device.offered() | Feature.ANY_LAYOUT.mask | scsi

    @property
    def _legacy_config(self) -> int:
        return LEGACY_CONFIG_MSIX if self.interrupts.messages_enabled else LEGACY_CONFIG

    def _legacy_read(self, offset: int, length: int) -> bytes:
        header = min(max(self._legacy_config - offset, 0), length)
        data = self._legacy.read(offset, header) if header else b""
        if header < length:
            data += self._config_bytes(offset + header - self._legacy_config, length - header)
        return data

    def _legacy_write(self, offset: int, data: bytes) -> None:
        start = self._legacy_config
        header = data[: max(start - offset, 0)]
        if header:
            self._legacy.write(offset, header)
        elif offset + len(data) <= start + CONFIG_SIZE:
            self.device.write_config(offset - start, data, legacy=True)

    def _write_legacy_features(self, value: int) -> None:
        self._driver_feature = {0: value}
        self.device.choose(value & ~mask(Feature.ANY_LAYOUT, Feature.BLK_SCSI), legacy=True)

    def _write_legacy_status(self, value: int) -> None:
        # There is no FEATURES_OK: the features that were written count (virtio 3.1.2).
        if not self._driver_feature:
            self.device.choose(0, legacy=True)
        self.device.set_status(value)
        if value == 0:
            self._reset_registers()
        self._legacy_driver = value != 0

    def _write_queue_page(self, page: int) -> None:
        if not (found := self._queue()):
            return
        queue, registers = found
        registers.page = page
        if page == 0:
            self.device.stop(queue)
            queue.enabled = False
        elif not queue.enabled:
            queue.size = self._largest_queue
            desc = page * LEGACY_PAGE
            driver, device, _ = legacy_areas(queue.size, LEGACY_PAGE)
            queue.addresses = Addresses(desc, desc + driver, desc + device)
            self.device.set_queue_base(queue, 0)
            queue.enabled = True

    def _legacy_notify(self, index: int) -> None:
        if self._observer:
            self._observer("notified", queue=index, width=2, value=index, **self._asked(index))
        if self._available(index):
            self._process_later(self.device.queues[index])
