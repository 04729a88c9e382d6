#!/bin/sh
# 2.8.4-P-01 (described): The length of a used descriptor is the number of bytes that the device
# has written.
#
# Seen with qemu 7.2.22.
# Expected: completion.used_len <= max(written, 1)
# Seen: used length 21, but only 1 bytes written from the start
# Test:
# conformance/test_both_rings.py::test_the_used_length_covers_only_bytes_that_were_written[packed-
# id], target qtest-pci
#
# Needs nothing but QEMU:
#     sh 01-used-length-on-the-packed-ring.sh   (or QEMU=/path/to/qemu-system-x86_64 sh 01-used-length-on-the-packed-ring.sh)
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

"$QEMU" -machine pc -m 64 \
  -bios "$dir/bios" -nodefaults -no-user-config -display none -vga none \
  -blockdev '{"driver": "file", "filename": "'"$dir/disk.raw"'", "node-name": "disk0-file", "discard": "unmap", "read-only": false}' \
  -blockdev '{"driver": "raw", "file": "disk0-file", "node-name": "disk0", "discard": "unmap", "read-only": false}' \
  -device '{"driver": "virtio-blk-pci", "disable-legacy": "on", "disable-modern": false, "bus": "pci.0", "addr": "0x4", "id": "disk0", "drive": "disk0", "werror": "report", "rerror": "report", "packed": true}' \
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

send 95 <<'END'
outl 0xcf8 0x80002014
outl 0xcfc 0xe0400000
outl 0xcf8 0x80002020
outl 0xcfc 0xe0404000
outl 0xcf8 0x80002004
outw 0xcfc 0x7
outl 0xcf8 0x80002000
inl 0xcfc
outl 0xcf8 0x80002004
inb 0xcfe
outl 0xcf8 0x80002034
inb 0xcfc
outl 0xcf8 0x80002098
inw 0xcfc
outl 0xcf8 0x80002084
inw 0xcfc
outl 0xcf8 0x80002070
inw 0xcfc
outl 0xcf8 0x80002060
inw 0xcfc
outl 0xcf8 0x80002050
inw 0xcfc
outl 0xcf8 0x80002040
inw 0xcfc
outl 0xcf8 0x80002080
inl 0xcfc
writel 0xe0404000 0x0
readl 0xe0404004
writel 0xe0404000 0x1
readl 0xe0404004
writeb 0xe0404014 0x0
readb 0xe0404014
writeb 0xe0404014 0x1
writeb 0xe0404014 0x3
writel 0xe0404000 0x0
readl 0xe0404004
writel 0xe0404000 0x1
readl 0xe0404004
writel 0xe0404008 0x0
writel 0xe040400c 0x10006e54
writel 0xe0404008 0x1
writel 0xe040400c 0x1
readb 0xe0404014
writeb 0xe0404014 0xb
readb 0xe0404014
writeb 0xe0404014 0x0
readb 0xe0404014
writeb 0xe0404014 0x1
writeb 0xe0404014 0x3
writel 0xe0404000 0x0
readl 0xe0404004
writel 0xe0404000 0x1
readl 0xe0404004
writel 0xe0404008 0x0
writel 0xe040400c 0x10006e54
writel 0xe0404008 0x1
writel 0xe040400c 0x5
readb 0xe0404014
writeb 0xe0404014 0xb
readb 0xe0404014
writew 0xe0404016 0x0
readw 0xe0404018
writel 0xe0404008 0x0
readl 0xe040400c
writel 0xe0404008 0x1
readl 0xe040400c
memset 0x100000 0x1000 0x0
memset 0x101000 0x4 0x0
memset 0x101004 0x4 0x0
writew 0xe0404016 0x0
writew 0xe0404018 0x100
writel 0xe0404020 0x100000
writel 0xe0404024 0x0
writel 0xe0404028 0x101000
writel 0xe040402c 0x0
writel 0xe0404030 0x101004
writel 0xe0404034 0x0
readw 0xe040401e
writel 0xe0404008 0x0
readl 0xe040400c
writel 0xe0404008 0x1
readl 0xe040400c
writew 0xe040401c 0x1
writeb 0xe0404014 0xf
readb 0xe0404014
memset 0x101010 0x40 0xc5
write 0x101050 0x10 0x08000000000000000000000000000000
memset 0x101060 0x94 0xc5
write 0x1010f4 0x1 0xff
memset 0x1010f5 0x40 0xc5
write 0x100000 0xe 0x5010100000000000100000000000
write 0x100010 0x10 0xa0101000000000001400000000008300
write 0x100020 0x10 0xf4101000000000000100000000008200
write 0x10000e 0x2 0x8100
writew 0xe0407000 0x0
END
check 'read 0x100008 0x6' 'OK 0x150000000000' 'virtqueue 0: chain 0 is used, length 21'
check 'read 0x1010f4 0x1' 'OK 0x00' 'the status byte is 0x0'
check 'read 0x1010a0 0x14' 'OK 0x00c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5' 'the first bytes of the 20 at 0x1010a0'

if [ $status -eq 0 ]; then
  echo "reproduced: "'used length 21, but only 1 bytes written from the start'
else
  echo "not reproduced"
fi
exit $status
