"""Whether base and tasks fit: every mismatch at once, in sentences, from the headers alone."""
