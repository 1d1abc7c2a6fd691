"""What each tensor of a checkpoint is: its owner, its role, its parts."""
