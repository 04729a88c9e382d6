"""The guest image: built from Debian packages on first use, and cached.

image = images.ensure(print)
# qemu-system-x86_64 -kernel image.kernel -initrd image.initrd -append images.KERNEL_ARGS ...
"""

from images.cache import Image, Status, cache_dir, ensure, status, update
from images.errors import ImageError
from images.recipe import KERNEL_ARGS, KERNEL_ARGS_IOMMU, KERNEL_ARGS_MICROVM
from images.ssh import AGENT_PORT

__all__ = [
    "AGENT_PORT",
    "KERNEL_ARGS",
    "KERNEL_ARGS_IOMMU",
    "KERNEL_ARGS_MICROVM",
    "Image",
    "ImageError",
    "Status",
    "cache_dir",
    "ensure",
    "status",
    "update",
]
