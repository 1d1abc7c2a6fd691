"""recipe -> plan -> run -> report."""
