"""Multitask ranking models."""
