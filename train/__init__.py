"""Train a checkpoint from text, with torch."""
