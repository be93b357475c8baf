"""Ways to keep a model from giving its memories back, each with its cost."""
