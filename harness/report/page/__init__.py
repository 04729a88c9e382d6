"""The matrix as one HTML page: `--matrix FILE.html`."""

from .frame import rendered

__all__ = ["rendered"]
