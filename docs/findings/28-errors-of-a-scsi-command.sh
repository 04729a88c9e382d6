#!/bin/sh
#
# Seen with qemu 7.2.22.
# Expected: judgement.fate.tolerable
# Seen: wrote outside: 3 bytes of the memory around the buffers changed, the first at +0xe1 from
# 0xc5 to 0x00
# Test:
# conformance/hardening/test_requests.py::test_a_scsi_command_without_room_for_its_errors[split-
# in-1], target qtest-pci
#
# Needs nothing but QEMU:
#     sh 28-errors-of-a-scsi-command.sh   (or QEMU=/path/to/qemu-system-x86_64 sh 28-errors-of-a-scsi-command.sh)
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

"$QEMU" -machine pc -m 1040 \
  -bios "$dir/bios" -nodefaults -no-user-config -display none -vga none \
  -blockdev '{"driver": "file", "filename": "'"$dir/disk.raw"'", "node-name": "disk0-file", "discard": "unmap", "read-only": false}' \
  -blockdev '{"driver": "raw", "file": "disk0-file", "node-name": "disk0", "discard": "unmap", "read-only": false}' \
  -device '{"driver": "virtio-blk-pci", "disable-legacy": "on", "disable-modern": false, "bus": "pci.0", "addr": "0x4", "id": "disk0", "drive": "disk0", "werror": "report", "rerror": "report", "num-queues": 2}' \
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

send 139 <<'END'
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
writel 0xe0404000 0x0
readl 0xe0404004
writel 0xe0404000 0x1
readl 0xe0404004
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
writel 0xe040400c 0x10007e54
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
writel 0xe040400c 0x10007e54
writel 0xe0404008 0x1
writel 0xe040400c 0x101
readb 0xe0404014
writeb 0xe0404014 0xb
readb 0xe0404014
memset 0x100000 0x40 0x0
memset 0x100000 0x40 0xc5
writew 0xe0404016 0x0
readw 0xe0404018
writel 0xe0404008 0x0
readl 0xe040400c
writel 0xe0404008 0x1
readl 0xe040400c
memset 0x100040 0x400 0x0
memset 0x100440 0x86 0x0
memset 0x1004c8 0x206 0x0
writew 0xe0404016 0x0
writew 0xe0404018 0x40
writel 0xe0404020 0x100040
writel 0xe0404024 0x0
writel 0xe0404028 0x100440
writel 0xe040402c 0x0
writel 0xe0404030 0x1004c8
writel 0xe0404034 0x0
readw 0xe040401e
writel 0xe0404008 0x0
readl 0xe040400c
writel 0xe0404008 0x1
readl 0xe040400c
writew 0xe040401c 0x1
memset 0x1006d0 0x40 0x0
memset 0x1006d0 0x40 0xc5
writew 0xe0404016 0x1
readw 0xe0404018
writel 0xe0404008 0x0
readl 0xe040400c
writel 0xe0404008 0x1
readl 0xe040400c
memset 0x100710 0x400 0x0
memset 0x100b10 0x86 0x0
memset 0x100b98 0x206 0x0
writew 0xe0404016 0x1
writew 0xe0404018 0x40
writel 0xe0404020 0x100710
writel 0xe0404024 0x0
writel 0xe0404028 0x100b10
writel 0xe040402c 0x0
writel 0xe0404030 0x100b98
writel 0xe0404034 0x0
readw 0xe040401e
writel 0xe0404008 0x0
readl 0xe040400c
writel 0xe0404008 0x1
readl 0xe040400c
writew 0xe040401c 0x1
memset 0x100da0 0x40 0x0
memset 0x100da0 0x40 0xc5
memset 0x100de0 0x8000 0x0
memset 0x100de0 0x8000 0xc5
memset 0x100de0 0x1000 0xc5
readb 0xe0404014
writeb 0xe0404014 0xf
memset 0x108de0 0x40 0xc5
write 0x108e20 0x10 0x01000000000000006400000000000000
memset 0x108e30 0x40 0xc5
write 0x108e70 0x200 0x08090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c40102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c40102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f
memset 0x109070 0x40 0xc5
write 0x1090b0 0x1 0xff
memset 0x1090b1 0x40 0xc5
write 0x100710 0x10 0x208e1000000000001000000001000100
write 0x100720 0x10 0x708e1000000000000002000001000200
write 0x100730 0x10 0xb0901000000000000100000002000000
write 0x100b14 0x2 0x0000
write 0x100b12 0x2 0x0100
writew 0xe0407004 0x1
readb 0xe0405000
END
await 'read 0x100b9c 0x8' 'OK 0x0000000001000000'
send 13 <<'END'
memset 0x100e20 0x60 0xc5
write 0x100ec0 0x1 0xc5
write 0x100f10 0x1 0xff
write 0x100f60 0x10 0x02000000000000000000000000000000
write 0x100fb0 0x6 0x020304050607
write 0x100040 0x10 0x600f1000000000001000000001000100
write 0x100050 0x10 0xb00f1000000000000600000001000200
write 0x100060 0x10 0x200e1000000000006000000003000300
write 0x100070 0x10 0xc00e1000000000000100000003000400
write 0x100080 0x10 0x100f1000000000000100000002000500
write 0x100444 0x2 0x0000
write 0x100442 0x2 0x0100
writew 0xe0407000 0x0
END
sleep 0.1
send 12 <<'END'
readb 0xe0404014
memset 0x108de0 0x40 0xc5
write 0x108e20 0x10 0x00000000000000006400000000000000
memset 0x108e30 0x280 0xc5
write 0x1090b0 0x1 0xff
memset 0x1090b1 0x40 0xc5
write 0x100710 0x10 0x208e1000000000001000000001000100
write 0x100720 0x10 0x708e1000000000000002000003000200
write 0x100730 0x10 0xb0901000000000000100000002000000
write 0x100b16 0x2 0x0000
write 0x100b12 0x2 0x0200
writew 0xe0407004 0x1
END
await 'read 0x1004cc 0x8' 'OK 0x0000000062000000'
await 'read 0x100ba4 0x8' 'OK 0x0000000001020000'
send 76 <<'END'
writeb 0xe0404014 0x0
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
writel 0xe040400c 0x10007e54
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
writew 0xe0404016 0x1
readw 0xe0404018
writel 0xe0404008 0x0
readl 0xe040400c
writel 0xe0404008 0x1
readl 0xe040400c
memset 0x101a10 0x1000 0x0
memset 0x102a10 0x206 0x0
memset 0x102c18 0x806 0x0
writew 0xe0404016 0x1
writew 0xe0404018 0x100
writel 0xe0404020 0x101a10
writel 0xe0404024 0x0
writel 0xe0404028 0x102a10
writel 0xe040402c 0x0
writel 0xe0404030 0x102c18
writel 0xe0404034 0x0
readw 0xe040401e
writel 0xe0404008 0x0
readl 0xe040400c
writel 0xe0404008 0x1
readl 0xe040400c
writew 0xe040401c 0x1
writeb 0xe0404014 0xf
readb 0xe0404014
memset 0x103420 0x40 0xc5
write 0x103460 0x10 0x00000000000000006400000000000000
memset 0x103470 0x280 0xc5
write 0x1036f0 0x1 0xff
memset 0x1036f1 0x40 0xc5
write 0x100000 0x10 0x60341000000000001000000001000100
write 0x100010 0x10 0xb0341000000000000002000003000200
write 0x100020 0x10 0xf0361000000000000100000002000000
write 0x101004 0x2 0x0000
write 0x101002 0x2 0x0100
writew 0xe0407000 0x0
END
await 'read 0x10120c 0x8' 'OK 0x0000000001020000'
send 11 <<'END'
memset 0x103420 0x40 0xc5
write 0x103460 0x10 0x00000000000000006400000000000000
memset 0x103470 0x280 0xc5
write 0x1036f0 0x1 0xff
memset 0x1036f1 0x40 0xc5
write 0x101a10 0x10 0x60341000000000001000000001000100
write 0x101a20 0x10 0xb0341000000000000002000003000200
write 0x101a30 0x10 0xf0361000000000000100000002000000
write 0x102a14 0x2 0x0000
write 0x102a12 0x2 0x0100
writew 0xe0407004 0x1
END
check 'read 0x102c1c 0x8' 'OK 0x0000000001020000' 'virtqueue 1: chain 0 is used, length 513'
check 'read 0x1036f0 0x1' 'OK 0x00' 'the status byte is 0x0'
check 'read 0x1034b0 0x200' 'OK 0x08090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c40102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c40102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f' 'the first bytes of the 512 at 0x1034b0'

if [ $status -eq 0 ]; then
  echo "reproduced: "'wrote outside: 3 bytes of the memory around the buffers changed, the first at +0xe1 from 0xc5 to 0x00'
else
  echo "not reproduced"
fi
exit $status
