"""What the command line says when it cannot do what it was asked."""

from __future__ import annotations


class UsageError(Exception):
    """Something is wrong with what the user asked for; one line that says what to do."""
