"""Everything that contacts the Hugging Face hub, and only when asked."""
