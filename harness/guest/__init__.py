"""What runs inside a guest: an agent that serves the driver over a byte stream; and its client.

`wire`, `codec` and `agent` go into the guest and need nothing but Python's standard library.
`link` and `client` are their counterparts on the host.
"""
