"""What in a prompt, a picture or the training data a memory hangs on."""
