"""From the files of a data set to a prepared log."""
