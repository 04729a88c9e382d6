"""Random operations on a device, checked against a model of the disk.

Each run leaves a script.

`operations` and `script` define the operations, as data and as text; `contents` is the model of the
disk; `session` plays legal operations and checks them. These modules do not need hypothesis, so a
script can be replayed without it. `draw` and `machine` generate operations, and need it.
"""
