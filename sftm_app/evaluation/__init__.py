"""Run base, task and merged models on samples. The only place that imports transformers' models."""
