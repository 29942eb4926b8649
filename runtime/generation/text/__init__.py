"""Text and tokens: the tokenizer, the stream of whole characters, and stop strings."""
