"""Where logs come from: one file a data set."""
