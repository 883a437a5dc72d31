"""The last steps of a run, kept so that they can be replayed."""
