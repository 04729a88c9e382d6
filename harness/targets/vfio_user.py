"""The target `vfio-user:PATH`: a PCI function that somebody else serves, driven from here."""

from __future__ import annotations

from harness.diskspec import DiskSpec
from harness.driver.bus.vfio_user import VfioUser
from harness.driver.transport.base import Transport
from harness.driver.transport.pci import PciModern
from harness.targets.external import SocketTarget


class VfioUserSocket(SocketTarget):
    """The PCI function behind a vfio-user server on a UNIX socket."""

    description = "the PCI function of any vfio-user server that listens on that socket"
    alike = "model-pci"
    traits = frozenset({"pci", "modern"})
    protocol = "vfio-user"
    owner = "somebody else's function"

    def _reach(self, spec: DiskSpec) -> Transport:
        return PciModern(VfioUser(self._path))

    def facts(self) -> dict[str, str]:
        """Return the socket."""
        return {"vfio-user": self._path, **self._queues}
