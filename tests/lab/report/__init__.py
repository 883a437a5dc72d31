"""A package, so that its conftest.py and its study have names of their own."""
