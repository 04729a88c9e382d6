"""Devices whose drivers break the rules: what becomes of them, and of all around them.

The specification says little of what a device does then. It may serve the request,
refuse it, ignore it, or ask for a reset. It must not end, spin, grow, write to memory it
was not given, or stay dead after a reset. So a failure here is no violation of the
specification; docs/hardening.md has the verdicts.
"""
