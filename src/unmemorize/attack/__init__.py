"""Ways to get a memory back out of a model: every fix is judged by them."""
