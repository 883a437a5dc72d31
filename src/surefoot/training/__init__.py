"""Sequential training."""
