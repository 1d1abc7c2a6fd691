"""Write a merge to disk: the output folder, its documents, progress, resuming, executors."""
