#!/bin/sh
# 2.2.2-D-03 (MUST NOT): No feature bit is offered that means nothing for the device: none that is
# reserved, undescribed, or of another transport or device type. What a later version of the
# specification defines may be offered by a device written to that version.
#
# Seen with qemu 7.2.22.
# Expected: features == 0
# Seen: DeviceFeaturesSel 0x4 shows features 0x101: 257 == 0
# Test: conformance/test_mmio.py::test_device_features_is_zero_beyond_the_defined_bits[4], target
# qtest-mmio
#
# Needs nothing but QEMU:
#     sh 10-mmio-features-beyond-63.sh   (or QEMU=/path/to/qemu-system-x86_64 sh 10-mmio-features-beyond-63.sh)
# Exit status: 0 if the device does what the test saw, 1 if it does not.

QEMU=${QEMU:-qemu-system-x86_64}
dir=$(mktemp -d) || exit 2
qemu=
reader=
trap 'kill $qemu $reader 2>/dev/null; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM
trap '' PIPE  # QEMU may end early

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

sent=0
status=0

send() {  # number of commands, which are on standard input; each has one line of answer
  cat >&4 2>/dev/null
  sent=$((sent + $1))
}

answer() {  # command; its answer is in $seen then
  echo "$1" >&4 2>/dev/null
  sent=$((sent + 1))
  seen="no answer"
  turns=0
  while [ $turns -lt 200 ]; do
    if [ "$(wc -l <"$dir/answers")" -ge $sent ]; then
      seen=$(sed -n "${sent}p" "$dir/answers")
      return
    fi
    kill -0 $qemu 2>/dev/null || return
    sleep 0.05
    turns=$((turns + 1))
  done
}

await() {  # command, expected answer: ask for some seconds, until it is that
  tries=0
  while [ $tries -lt 60 ]; do
    answer "$1"
    [ "$seen" = "$2" ] && return
    [ $status -eq 0 ] || return  # it is not reproduced anyway
    sleep 0.1
    tries=$((tries + 1))
  done
}

check() {  # command, expected answer, what it is
  await "$1" "$2"
  if [ "$seen" = "$2" ]; then
    echo "as in the test: $3"
  else
    echo "not as in the test: $3: $seen, not $2"
    status=1
  fi
}

answer endianness
if [ "$seen" != "OK little" ]; then
  echo "QEMU does not run: $seen"
  exit 2
fi

send 8 <<'END'
readl 0xfeb00000
readl 0xfeb00004
readl 0xfeb00008
writel 0xfeb00014 0x0
readl 0xfeb00010
writel 0xfeb00014 0x1
readl 0xfeb00010
writel 0xfeb00014 0x4
END
check 'readl 0xfeb00010' 'OK 0x0000000000000101' 'read device_feature as 0x101 (32 bits)'

if [ $status -eq 0 ]; then
  echo "reproduced: "'DeviceFeaturesSel 0x4 shows features 0x101: 257 == 0'
else
  echo "not reproduced"
fi
exit $status
