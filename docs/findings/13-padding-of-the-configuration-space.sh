#!/bin/sh
# 5.2.5.2-D-03 (MUST): The padding of the configuration space is 0.
#
# Seen with qemu 7.2.22.
# Expected: padding == {"unused0": b"\0", "unused1": b"\0\0\0"}
# Seen: {'unused0': b...\xff\xff\xff'} == {'unused0': b...\x00\x00\x00'}
# Test: conformance/test_config_space.py::test_padding_is_zero, target qtest-pci
#
# Needs nothing but QEMU:
#     sh 13-padding-of-the-configuration-space.sh   (or QEMU=/path/to/qemu-system-x86_64 sh 13-padding-of-the-configuration-space.sh)
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
  -device '{"driver": "virtio-blk-pci", "disable-legacy": "on", "disable-modern": false, "bus": "pci.0", "addr": "0x4", "id": "disk0", "drive": "disk0", "werror": "report", "rerror": "report"}' \
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

send 73 <<'END'
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
writew 0xe0404016 0x0
readw 0xe0404018
writel 0xe0404008 0x0
readl 0xe040400c
writel 0xe0404008 0x1
readl 0xe040400c
memset 0x100000 0x1000 0x0
memset 0x101000 0x206 0x0
memset 0x101208 0x806 0x0
writew 0xe0404016 0x0
writew 0xe0404018 0x100
writel 0xe0404020 0x100000
writel 0xe0404024 0x0
writel 0xe0404028 0x101000
writel 0xe040402c 0x0
writel 0xe0404030 0x101208
writel 0xe0404034 0x0
readw 0xe040401e
writel 0xe0404008 0x0
readl 0xe040400c
writel 0xe0404008 0x1
readl 0xe040400c
writew 0xe040401c 0x1
writeb 0xe0404014 0xf
readb 0xe0404014
readb 0xe0406021
readb 0xe0406039
readb 0xe040603a
END
check 'readb 0xe040603b' 'OK 0x00000000000000ff' 'read device at 0x3b as 0xff (8 bits)'

if [ $status -eq 0 ]; then
  echo "reproduced: "'{'"'"'unused0'"'"': b...\xff\xff\xff'"'"'} == {'"'"'unused0'"'"': b...\x00\x00\x00'"'"'}'
else
  echo "not reproduced"
fi
exit $status
