"""What a merge will do and what it takes: recipe, plan, memory, cost. Computes nothing."""
