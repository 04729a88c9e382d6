"""Verdicts on drivers: `pytest conformance/drivers --driver NAME`. docs/your-driver.md."""
