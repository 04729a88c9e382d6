"""Reproducers of findings that run without this project, made from the trace of a test."""

from harness.reproducers.steps import NotPossibleError

__all__ = ["NotPossibleError"]
