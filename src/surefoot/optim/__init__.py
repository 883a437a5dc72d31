"""Optimizers that scale their step by a rule."""
