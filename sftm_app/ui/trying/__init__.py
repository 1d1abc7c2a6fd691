"""Trying models on samples: the inputs, labelled sets and answers that Inspect and Evaluate share."""
