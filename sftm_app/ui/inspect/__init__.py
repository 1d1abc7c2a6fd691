"""The Inspect tab: the map of the model, a layer, pairs of tasks, a feature, what-if, and two views side by side.

Each panel is a class in a file of its own: its components, and functions that return updates of these components alone.
`views` are the components that its `show` updates, `choices` those that `open` updates.
"""
