"""The quality of an exported model on a text: perplexity, and divergence from a reference."""
