"""The Evaluate tab, and what Inspect shares with it: inputs for samples, labelled samples, answers."""
