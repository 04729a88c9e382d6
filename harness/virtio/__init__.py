"""The virtio 1.4 specification as data: bits, codes, layouts. Imports no other folder of ours."""
