"""Groups of controls: a method with its parameters, a rank, what to write."""
