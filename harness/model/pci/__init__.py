"""The model device as a PCI function, served over vfio-user (virtio 4.1)."""
