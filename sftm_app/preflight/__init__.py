"""Compare base and tasks by their headers, and report every mismatch at once."""
