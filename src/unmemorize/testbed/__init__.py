"""The testbed: small models with planted memories, whose ground truth is known."""
