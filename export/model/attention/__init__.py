"""The nodes of attention: positions, windows and the choice of heads."""
