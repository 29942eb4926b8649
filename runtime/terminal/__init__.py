"""Write for a terminal: progress, plots, printable text."""
