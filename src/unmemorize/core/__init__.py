"""Contracts every method shares: the model, the sampling loop, results, runs."""
