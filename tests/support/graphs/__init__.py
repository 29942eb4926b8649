"""Small graphs written by hand, and what they must compute."""
