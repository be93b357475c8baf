"""Adapters: foreign models as a `DiffusionModel`."""
