"""Breaches of the device status and of suspension (virtio 2.1, 2.4, 3.1, 3.4)."""

from __future__ import annotations

from contextlib import suppress

from harness.driver.errors import FeaturesRefusedError
from harness.proof.breaches.breach import (
    ACKNOWLEDGE,
    CHOSEN,
    DRIVER,
    DRIVER_OK,
    FAILED,
    RUNNING,
    SUSPEND,
    V1,
    WRITEBACK,
    begin,
    breach,
    request_buffers,
)
from harness.targets.disk import Disk
from harness.virtio.features import Feature


@breach("2.1.1-R-01", "3.1.1-R-01")
def leaves_features_ok_out(disk: Disk) -> None:
    """Set DRIVER_OK without FEATURES_OK."""
    begin(disk)
    disk.driver.offered()
    disk.driver.accept(V1)
    disk.driver.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK)


@breach("2.1.1-R-02")
def clears_acknowledge(disk: Disk) -> None:
    """Set DRIVER, and clear ACKNOWLEDGE."""
    disk.driver.reset()
    disk.driver.set_status(ACKNOWLEDGE)
    disk.driver.set_status(DRIVER)


@breach("2.1.1-R-02", "2.1.1-R-03")
def starts_again_after_failed(disk: Disk) -> None:
    """Set FAILED, then ACKNOWLEDGE and DRIVER again without a reset."""
    begin(disk)
    disk.driver.set_status(ACKNOWLEDGE | DRIVER | FAILED)
    disk.driver.set_status(ACKNOWLEDGE | DRIVER)


@breach("3.1.1-R-01")
def skips_the_check_of_features_ok(disk: Disk) -> None:
    """Set DRIVER_OK, and do not read the status after FEATURES_OK."""
    begin(disk)
    disk.driver.offered()
    disk.driver.accept(V1)
    disk.driver.set_status(CHOSEN)
    disk.driver.set_status(RUNNING)


@breach("3.1.1-R-02b")
def writes_the_configuration_early(disk: Disk) -> None:
    """Write writeback before FEATURES_OK."""
    begin(disk)
    disk.driver.config_write(WRITEBACK, b"\1")


@breach("3.1.1-R-03")
def accepts_more_after_features_ok(disk: Disk) -> None:
    """Write another feature bit to driver_feature after FEATURES_OK."""
    disk.driver.negotiate(V1)
    disk.driver.register_write("driver_feature_select", 0)
    disk.driver.register_write("driver_feature", Feature.INDIRECT_DESC.mask)


@breach("3.1.1-R-04", "6.1-R-01")
def does_not_say_that_it_failed(disk: Disk) -> None:
    """Go on without FAILED after the device has refused the features."""
    with suppress(FeaturesRefusedError):
        disk.driver.negotiate(Feature.INDIRECT_DESC.mask)
    disk.driver.set_status(ACKNOWLEDGE | DRIVER)


@breach("3.1.1-R-05", "6.1-R-01")
def goes_on_after_failed(disk: Disk) -> None:
    """Set FAILED after the device has refused the features, then DRIVER_OK."""
    with suppress(FeaturesRefusedError):
        disk.driver.negotiate(Feature.INDIRECT_DESC.mask)
    disk.driver.set_status(ACKNOWLEDGE | DRIVER | FAILED)
    disk.driver.set_status(RUNNING | FAILED)


@breach("3.1.1-R-06")
def notifies_too_early(disk: Disk) -> None:
    """Notify a virtqueue before DRIVER_OK."""
    disk.driver.negotiate(V1)
    disk.driver.queue_setup(0)
    disk.driver.queue_kick(0)


@breach("2.4.2-R-01", "4.1.4.3.2-R-05")
def does_not_wait_for_the_reset(disk: Disk) -> None:
    """Write the status again after a 0, and do not read it in between."""
    disk.driver.set_status(0)
    disk.driver.set_status(ACKNOWLEDGE)


def suspended(disk: Disk) -> None:
    """Start the device with SUSPEND, and suspend it."""
    disk.start(V1 | Feature.SUSPEND.mask)
    disk.driver.set_status(RUNNING | SUSPEND)
    disk.driver.status()


@breach("3.4.1-R-01")
def suspends_without_the_feature(disk: Disk) -> None:
    """Set SUSPEND, and the feature was not negotiated."""
    disk.start(V1)
    disk.driver.set_status(RUNNING | SUSPEND)


@breach("3.4.1-R-02")
def does_not_look_whether_it_is_suspended(disk: Disk) -> None:
    """Suspend the device and resume it, and do not read the status in between."""
    disk.start(V1 | Feature.SUSPEND.mask)
    disk.driver.set_status(RUNNING | SUSPEND)
    disk.driver.set_status(RUNNING)


@breach("3.4.1-R-03")
def adds_buffers_while_suspended(disk: Disk) -> None:
    """Make a buffer available while the device is suspended."""
    disk.start(V1 | Feature.SUSPEND.mask)
    disk.read(0)
    disk.driver.set_status(RUNNING | SUSPEND)
    disk.driver.status()
    disk.driver.queue_publish(0, [disk.driver.queue_add(0, request_buffers(disk))])
    disk.driver.set_status(RUNNING)
    disk.driver.status()
    disk.driver.queue_kick(0)


@breach("3.4.1-R-04")
def notifies_while_suspended(disk: Disk) -> None:
    """Notify a virtqueue while the device is suspended."""
    suspended(disk)
    disk.driver.queue_kick(0)


@breach("3.4.1-R-05")
def writes_the_configuration_while_suspended(disk: Disk) -> None:
    """Write writeback while the device is suspended."""
    suspended(disk)
    disk.driver.config_write(WRITEBACK, b"\0")


@breach("3.4.1-R-06")
def does_not_wait_for_the_resumption(disk: Disk) -> None:
    """Resume the device and notify a virtqueue, and do not read the status in between."""
    suspended(disk)
    disk.driver.set_status(RUNNING)
    disk.driver.queue_kick(0)
