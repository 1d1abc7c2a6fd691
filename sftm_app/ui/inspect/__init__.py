"""The Inspect tab: the map of the model, a layer, a feature, what-if, and two views side by side."""
