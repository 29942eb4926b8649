"""Bodies of our own: the dial, per-token compute, tokenise, properties."""
