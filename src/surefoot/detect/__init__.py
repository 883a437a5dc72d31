"""Floats in, verdict out: when training diverges. The standard library only."""
