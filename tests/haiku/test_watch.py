"""The output of `vblk watch`, and its times."""

import argparse

import pytest
from device_model import DeviceModel

from harness.cli import watch
from harness.haiku.module import open_disk


def test_the_disk_is_shown_at_first_and_at_every_change():
    device = DeviceModel(physical_block_exp=3, seg_max=126, queue_size=256)
    resizes = iter([None, 4096, None, None, 1024])
    shown = []

    def pause():
        capacity = next(resizes)
        if capacity is not None:
            device.resize(capacity)

    with open_disk(device) as handle:
        watch.watch(handle, shown.append, changes=2, pause=pause)

    first, grown, shrunk = ([*text.splitlines()] for text in shown)
    assert first == [
        "features    maximum segment count, disk geometry, flush command, topology, "
        "ring indirect, VERSION_1",
        "size        1048576 bytes, 2048 blocks",
        "geometry    1 heads, 1 cylinders, 2048 sectors per track",
        "sectors     512 bytes, physically 4096",
        "is          writable",
        "segments    at most 126, of 4294967295 bytes",
        "media       B_OK",
        "statistics  reads 0, writes 0, flushes 0, bytes read 0, bytes written 0, errors 0, "
        "timeouts 0, late completions 0, config changes 0",
    ]
    assert grown[1] == "size        2097152 bytes, 4096 blocks"
    assert shrunk[1] == "size        524288 bytes, 1024 blocks"
    assert grown[6] == shrunk[6] == "media       B_DEV_MEDIA_CHANGED"
    assert grown[7].startswith("statistics  reads 2,")
    assert shrunk[7].startswith("statistics  reads 5,")


def test_a_read_only_disk_is_shown_as_one():
    with open_disk(DeviceModel(read_only=True)) as handle:
        text = watch.view(handle, watch.media_status(handle))
    assert "is          read-only\n" in text


def test_arguments():
    parser = argparse.ArgumentParser()
    watch.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["watch", "--size", "3T", "--block-size", "4096"])
    assert (arguments.size, arguments.block_size, arguments.read_only) == ("3T", 4096, False)
    assert arguments.changes is None
    assert arguments.run is watch.run
    with pytest.raises(SystemExit):
        parser.parse_args(["watch", "--changes", "some"])
