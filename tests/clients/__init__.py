"""Trainers that nobody here wrote, and what surefoot does in them."""
