"""Short titles of the sections of virtio 1.4, in our own words."""

from __future__ import annotations

from urllib.parse import quote

from harness.virtio.catalogue import VHOST_USER

SPECIFICATION = "https://docs.oasis-open.org/virtio/virtio/v1.4/virtio-v1.4.html"
"""The address of the specification."""

PROTOCOL = "https://qemu-project.gitlab.io/qemu/interop/vhost-user.html"
"""The address of the document of the vhost-user protocol."""

NAMES = {
    "2": "Basic facilities",
    "2.1": "Device status",
    "2.2": "Feature bits",
    "2.3": "Notifications",
    "2.4": "Device reset",
    "2.5": "Configuration space",
    "2.6": "Virtqueues",
    "2.6.1": "Reset of a virtqueue",
    "2.6.1.2": "A virtqueue enabled again",
    "2.7": "Split virtqueues",
    "2.7.2": "Legacy layout",
    "2.7.3": "Legacy byte order",
    "2.7.4": "Framing",
    "2.7.5": "Descriptor table",
    "2.7.5.3": "Indirect descriptors",
    "2.7.6": "Available ring",
    "2.7.7": "Which used buffers are notified",
    "2.7.8": "Used ring",
    "2.7.9": "Use in order",
    "2.7.10": "Which available buffers are notified",
    "2.7.13": "Buffers to the device",
    "2.7.13.3": "The available index",
    "2.7.13.4": "Notifying the device",
    "2.7.14": "Buffers from the device",
    "2.8": "Packed virtqueues",
    "2.8.1": "Wrap counters",
    "2.8.2": "Polling of descriptors",
    "2.8.3": "The write flag",
    "2.8.4": "Address and length of an element",
    "2.8.5": "Scatter and gather",
    "2.8.6": "Chains of descriptors",
    "2.8.7": "Indirect descriptors",
    "2.8.8": "Use in order",
    "2.8.9": "Requests of several buffers",
    "2.8.10": "Event suppression",
    "2.8.10.1": "Size and alignment of the structures",
    "2.8.11": "What a driver owes the ring",
    "2.8.12": "What a device owes the ring",
    "2.8.13": "Format of a descriptor",
    "2.8.14": "Format of the event suppression structure",
    "2.8.15": "Descriptors: the device",
    "2.8.16": "Descriptors: the driver",
    "2.8.17": "Scatter and gather: the driver",
    "2.8.18": "Scatter and gather: the device",
    "2.8.19": "Indirect descriptors: the driver",
    "2.8.20": "Operation of the ring",
    "2.8.21": "Buffers to the device",
    "2.8.22": "Buffers from the device",
    "2.9": "Driver notifications",
    "2.10": "Shared memory regions",
    "2.11": "Exported objects",
    "2.12": "Groups of devices and their administration",
    "2.13": "Administration virtqueues",
    "2.14": "Device parts",
    "3": "Initialisation and operation",
    "3.1": "Initialisation",
    "3.1.2": "Legacy initialisation",
    "3.2": "Operation",
    "3.3": "Cleanup",
    "3.4": "Suspend",
    "4": "Transports",
    "4.1": "PCI",
    "4.1.2": "Discovery",
    "4.1.3": "Layout",
    "4.1.4": "Capabilities",
    "4.1.4.3": "Common configuration",
    "4.1.4.4": "Notification capability",
    "4.1.4.5": "ISR status",
    "4.1.4.6": "Device-specific configuration",
    "4.1.4.7": "Shared memory capability",
    "4.1.4.8": "Vendor data capability",
    "4.1.4.9": "Access through PCI configuration space",
    "4.1.4.10": "Legacy layout",
    "4.1.4.11": "A modern device and a legacy driver",
    "4.1.5": "Operation over PCI",
    "4.1.5.1.1": "Detection of the layout",
    "4.1.5.1.2": "MSI-X vectors",
    "4.1.5.1.3": "Virtqueue setup",
    "4.1.5.2": "Notifications of available buffers",
    "4.1.5.3": "Notifications of used buffers",
    "4.1.5.4": "Notifications of a changed configuration",
    "4.2": "MMIO",
    "4.2.1": "Discovery",
    "4.2.2": "Registers",
    "4.2.3": "Operation over MMIO",
    "4.2.3.1": "Initialisation",
    "4.2.3.4": "Notifications of the device",
    "4.2.4": "Legacy registers",
    "5": "Device types",
    "5.2": "Block device",
    "5.2.3": "Feature bits of a block device",
    "5.2.4": "Its configuration layout",
    "5.2.5": "Its initialisation",
    "5.2.6": "Its operation",
    "6": "Reserved feature bits",
    "6.1": "What a driver accepts",
    "6.2": "What a device offers",
    "6.3": "Legacy: reserved bits",
    "7": "Conformance",
    "7.4": "Transitional or not",
    VHOST_USER: "The vhost-user protocol",
}
"""Section -> title. A section with only "Device Requirements" in its name uses its parent's."""


def section_name(section: str) -> str:
    """Return the title of a section, or of the nearest section that contains it."""
    while section:
        if section in NAMES:
            return NAMES[section]
        section = section.rpartition(".")[0]
    return ""


def section_url(section: str) -> str:
    """Return a link to a section of the specification.

    Its headings have no anchors that follow from their numbers. So the link names the number as a
    text fragment: a browser goes to its first occurrence, the entry in the table of contents.
    """
    if section == VHOST_USER:
        return PROTOCOL
    return f"{SPECIFICATION}#:~:text={quote(section)}"
