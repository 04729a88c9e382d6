"""The device status and the reset of the device, in messages (STATUS, RESET_DEVICE)."""

from conformance.vhost_user.front_end import DRIVER, READY, check_ok, read
from conformance.waiting import eventually, let_pass
from harness.report import clause, on, reads_only
from harness.virtio.device import DeviceStatus
from harness.virtio.vhost_user import FrontEndRequest, ProtocolFeature

pytestmark = on("vhost-user")


@reads_only
@clause("VU-status-01")
def test_the_status_is_the_one_that_was_set(front):
    vmm = front(needs=[ProtocolFeature.STATUS])

    def status():
        return vmm.ask_number(FrontEndRequest.GET_STATUS)

    assert eventually(lambda: status() == 0)
    for value in (DeviceStatus.ACKNOWLEDGE, DRIVER):
        vmm.set_status(value)
        assert status() == value
    vmm.agree()
    assert status() == READY
    vmm.share()
    ring = vmm.ring()
    ring.start()
    vmm.ready()
    assert status() == READY | DeviceStatus.DRIVER_OK
    check_ok(ring.wait(ring.send(read())))
    ring.stop()
    vmm.set_status(0)
    assert eventually(lambda: status() == 0)


@reads_only
@clause("VU-reset-device-01")
def test_a_reset_device_is_set_up_again_on_the_same_connection(front):
    vmm = front(needs=[ProtocolFeature.RESET_DEVICE])
    for turn in range(3):
        ring = vmm.begin()
        check_ok(ring.wait(ring.send(read(turn), read(turn + 1))))

        vmm.tell(FrontEndRequest.RESET_DEVICE)
        vmm.barrier()
        flights = ring.send(read())
        let_pass(0.1, disk=front.disk)

        assert ring.done(flights) == 0, "a ring is still processed after RESET_DEVICE"
