"""Detectors: pure functions of recorded sampling steps, one technique a file."""

from unmemorize.detect import noise

__all__ = ["noise"]
