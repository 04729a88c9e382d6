"""Errors of the command line."""

from __future__ import annotations


class UsageError(Exception):
    """Error of a request that cannot be fulfilled. The message is one line that says what to do."""
