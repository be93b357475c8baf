"""What it is in a prompt that makes a model copy."""
