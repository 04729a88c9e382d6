#!/bin/sh
# 4.1.4.3.1-D-06 (MUST): The configuration generation changes when a field that the driver has
# read changes.
#
# Seen with qemu 7.2.22.
# Expected: after[1] != before[1]
# Seen: the config generation stayed the same: 0 != 0
# Test: conformance/test_config_space.py::test_generation_differs_after_a_change_before_driver_ok,
# target qtest-pci
#
# Needs nothing but QEMU:
#     sh 08-config-generation.sh   (or QEMU=/path/to/qemu-system-x86_64 sh 08-config-generation.sh)
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
mkfifo "$dir/in" "$dir/qmp.in" "$dir/qmp.out"

"$QEMU" -machine pc -m 64 \
  -bios "$dir/bios" -nodefaults -no-user-config -display none -vga none \
  -chardev "pipe,id=qmp,path=$dir/qmp" -mon chardev=qmp,mode=control \
  -blockdev '{"driver": "file", "filename": "'"$dir/disk.raw"'", "node-name": "disk0-file", "discard": "unmap", "read-only": false}' \
  -blockdev '{"driver": "raw", "file": "disk0-file", "node-name": "disk0", "discard": "unmap", "read-only": false}' \
  -device '{"driver": "virtio-blk-pci", "disable-legacy": "on", "disable-modern": false, "bus": "pci.0", "addr": "0x4", "id": "disk0", "drive": "disk0", "werror": "report", "rerror": "report"}' \
  -qtest stdio -qtest-log none <"$dir/in" >"$dir/answers" &
qemu=$!
exec 4>"$dir/in"
# The answers to QMP are of no interest, but have to be read.
cat <>"$dir/qmp.out" >/dev/null &
reader=$!
exec 3<>"$dir/qmp.in"
printf '%s\n' '{"execute": "qmp_capabilities"}' >&3

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

send 48 <<'END'
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
readl 0xe0406000
readl 0xe0406004
readb 0xe0404015
END
sleep 0.1
printf '%s\n' '{"execute": "block_resize", "arguments": {"node-name": "disk0", "size": 9437184}}' >&3
sleep 0.2
send 22 <<'END'
readb 0xe0404015
readl 0xe0406000
readl 0xe0406004
readl 0xe040600c
readw 0xe0406010
readb 0xe0406012
readb 0xe0406013
readl 0xe0406014
readb 0xe0406018
readb 0xe0406019
readw 0xe040601a
readl 0xe040601c
readb 0xe0406020
readl 0xe0406024
readl 0xe0406028
readl 0xe040602c
readl 0xe0406030
readl 0xe0406034
readb 0xe0406038
readb 0xe0404015
readl 0xe0406000
readl 0xe0406004
END
check 'readb 0xe0404015' 'OK 0x0000000000000000' 'read config_generation as 0x0 (8 bits)'

if [ $status -eq 0 ]; then
  echo "reproduced: "'the config generation stayed the same: 0 != 0'
else
  echo "not reproduced"
fi
exit $status
