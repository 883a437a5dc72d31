"""Logs, and batches from them."""
