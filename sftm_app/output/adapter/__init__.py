"""Write a merge as one LoRA adapter."""
