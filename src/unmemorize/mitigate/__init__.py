"""Ways to keep a model from repeating what it memorized. One technique per file."""
