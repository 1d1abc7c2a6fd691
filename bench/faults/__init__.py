"""Attacks on the app, with figures: `python -m bench.faults`. What is promised is in docs/faults.md."""
