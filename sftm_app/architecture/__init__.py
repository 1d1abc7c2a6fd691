"""What each tensor of a checkpoint is: the module that owns it, its role, and the linear maps in it."""
