"""The pytest plugin: its options, hooks and fixtures."""
