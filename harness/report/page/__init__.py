"""The matrix as one HTML page: `--matrix FILE.html`."""

from harness.report.page.frame import rendered

__all__ = ["rendered"]
