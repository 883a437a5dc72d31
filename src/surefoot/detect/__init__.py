"""Detects divergence: floats in, verdict out. Imports the standard library only."""
