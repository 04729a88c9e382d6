"""Defects of devices, each planted between the driver and a real device.

They show whether a test detects the defect. These defects are in registers (PCI capabilities,
common configuration, ISR, MSI-X, virtio-mmio), so a bus changes what the driver reads and writes.
"""
