"""Multitask rankers."""
