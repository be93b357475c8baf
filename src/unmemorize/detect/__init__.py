"""Detectors: pure functions of recorded sampling steps, one technique a file."""
