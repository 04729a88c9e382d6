#!/bin/sh
# 4.2.2-P-01 (described): QueueSizeMax is 0 for a virtqueue that does not exist.
#
# Seen with qemu 7.2.22.
# Expected: size == 0
# Seen: queue 1024 shows a QueueSizeMax of 1024: 1024 == 0
# Test:
# conformance/test_mmio.py::test_queue_size_max_is_zero_for_a_queue_that_does_not_exist[far],
# target qtest-mmio
#
# Needs nothing but QEMU:
#     sh 11-queue-select-beyond-1023-mmio.sh   (or QEMU=/path/to/qemu-system-x86_64 sh 11-queue-select-beyond-1023-mmio.sh)
# Exit status: 0 if the device does what the test saw, 1 if it does not.

QEMU=${QEMU:-qemu-system-x86_64}
dir=$(mktemp -d) || exit 2
qemu=
trap '[ -n "$qemu" ] && kill "$qemu" 2>/dev/null; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

# Firmware that halts the CPU: only the commands below touch the device.
truncate -s 65536 "$dir/bios"
printf '\372\364\353\375' |
  dd of="$dir/bios" bs=1 seek=65520 conv=notrunc status=none
truncate -s 8388608 "$dir/disk.raw"
mkfifo "$dir/in"

"$QEMU" -machine microvm,ioapic2=off -m 64 -global virtio-mmio.force-legacy=off \
  -bios "$dir/bios" -nodefaults -no-user-config -display none -vga none \
  -blockdev '{"driver": "file", "filename": "'"$dir/disk.raw"'", "node-name": "disk0-file", "discard": "unmap", "read-only": false}' \
  -blockdev '{"driver": "raw", "file": "disk0-file", "node-name": "disk0", "discard": "unmap", "read-only": false}' \
  -device '{"driver": "virtio-blk-device", "bus": "virtio-mmio-bus.0", "id": "disk0", "drive": "disk0", "werror": "report", "rerror": "report"}' \
  -qtest stdio -qtest-log none <"$dir/in" >"$dir/answers" &
qemu=$!
exec 4>"$dir/in"

# Each command has one line of answer.
commands() {
cat <<'END'
readl 0xfeb00000
readl 0xfeb00004
readl 0xfeb00008
writel 0xfeb00014 0x0
readl 0xfeb00010
writel 0xfeb00014 0x1
readl 0xfeb00010
writel 0xfeb00070 0x0
readl 0xfeb00070
writel 0xfeb00070 0x1
writel 0xfeb00070 0x3
writel 0xfeb00014 0x0
readl 0xfeb00010
writel 0xfeb00014 0x1
readl 0xfeb00010
writel 0xfeb00024 0x0
writel 0xfeb00020 0x10006e54
writel 0xfeb00024 0x1
writel 0xfeb00020 0x1
readl 0xfeb00070
writel 0xfeb00070 0xb
readl 0xfeb00070
readl 0xfeb000fc
readl 0xfeb00100
readl 0xfeb00104
readl 0xfeb0010c
readw 0xfeb00110
readb 0xfeb00112
readb 0xfeb00113
readl 0xfeb00114
readb 0xfeb00118
readb 0xfeb00119
readw 0xfeb0011a
readl 0xfeb0011c
readb 0xfeb00120
readl 0xfeb00124
readl 0xfeb00128
readl 0xfeb0012c
readl 0xfeb00130
readl 0xfeb00134
readb 0xfeb00138
readl 0xfeb000fc
writel 0xfeb00030 0x0
readl 0xfeb00034
writel 0xfeb00030 0x400
readl 0xfeb00034
END
}
commands >&4

waited=0
until [ "$(grep -c '^OK' "$dir/answers")" -ge 46 ] || [ $waited -ge 100 ]; do
  kill -0 $qemu 2>/dev/null || { echo "QEMU has ended"; break; }
  sleep 0.1
  waited=$((waited + 1))
done

status=0
check() {  # number of the command, expected answer, what it is
  seen=$(grep '^\(OK\|FAIL\|ERR\)' "$dir/answers" | sed -n "$1p")
  if [ "$seen" = "$2" ]; then
    echo "as in the test: $3"
  else
    echo "not as in the test: $3: $seen, not $2"
    status=1
  fi
}
check 46 'OK 0x0000000000000400' 'read QueueSizeMax as 0x400 (32 bits)'
[ $status -eq 0 ] && echo "reproduced: "'queue 1024 shows a QueueSizeMax of 1024: 1024 == 0' || echo "not reproduced"
exit $status
