"""Lets the tests run from a checkout, whether or not the project is installed."""

from importlib.metadata import entry_points

# Installed, the plugin comes by its entry point; loading it twice would be an error.
if "harness.pytestplugin.plugin" not in {point.value for point in entry_points(group="pytest11")}:
    pytest_plugins = ["harness.pytestplugin.plugin"]
