"""Hardening tests: the driver breaks the rules, and the device must not do harm.

The specification does not say much about a device in this situation. It may serve, refuse or
ignore the request, or ask for a reset. It must not crash, spin, use ever more memory, write to
memory that it was not given, or stay unusable after a reset. A failure here is not a violation
of the specification. docs/hardening.md has the verdicts.
"""
