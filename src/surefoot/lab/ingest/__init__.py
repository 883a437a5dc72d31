"""Converts logs from files into prepared logs."""
