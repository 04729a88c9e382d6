"""Runs of the suite on planted defects: each check has to turn red on one of them."""
