"""Random operations on a device, checked against a model of the disk; each run leaves a script.

`operations` and `script` are what can be done, as data and as text; `contents` is the model;
`session` plays legal operations and checks them. These need no hypothesis, so a script replays
without it. `draw` and `machine` make the operations up, and need it.
"""
