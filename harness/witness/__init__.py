"""Judges drivers by what they do to the model device: docs/witness.md.

`events` is the stream, `sessions` cuts it at resets, `rules` has the statements that can be
judged, and `judge` puts the verdicts together.
"""
