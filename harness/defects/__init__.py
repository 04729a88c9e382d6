"""Devices with one defect each: what lies between a driver and a real device lies about it.

A check is worth what it would catch. These defects live in registers (PCI
capabilities, common configuration, ISR, MSI-X, virtio-mmio), so they are made
by a bus that alters what the driver reads and writes.
"""
