"""Options, hooks and fixtures of the pytest plugin."""
