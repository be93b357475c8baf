"""Prompts and training pictures, from files people already have."""
