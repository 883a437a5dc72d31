"""A package, so that its parts have names of their own."""
