"""Makes a checkpoint from text, with torch."""
