"""Write to a terminal: progress, drawings, printable text."""
