"""Random operations, checked against a model of the disk: see docs/random.md."""
