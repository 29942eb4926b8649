"""What all rooms share: errors, names of files, the byte table, whole-file writes. The standard library alone."""
