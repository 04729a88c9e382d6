"""Entry point of `python -m harness.model`: the model's process, as a target starts it."""

from harness.model.main import main

main()
