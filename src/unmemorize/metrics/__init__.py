"""Measures of similarity, of ranking and of chance."""
