"""Runs of the suite on planted defects: each check has to fail on at least one of them."""
