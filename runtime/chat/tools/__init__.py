"""Tool calls in the text of a model: recognised, read back piece by piece, and required by a grammar."""
