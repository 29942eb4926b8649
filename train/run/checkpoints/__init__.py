"""Checkpoints: written whole or not at all, in the background, read back and verified."""
