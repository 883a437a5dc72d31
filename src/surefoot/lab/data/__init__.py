"""Logs and their batches."""
