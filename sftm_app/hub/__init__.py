"""Everything that contacts the Hugging Face hub, which happens only on request."""
