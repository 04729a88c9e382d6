"""Virtqueues in memory that driver and device share: a module for each format (2.7, 2.8)."""
