"""A run is a folder and a worker process; anything may watch it."""
