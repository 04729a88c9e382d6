"""The agent in a guest, which serves the driver over a byte stream, and its client on the host.

`wire`, `codec` and `agent` are sent into the guest and need Python's standard library only.
`link` and `client` are the host's side.
"""
