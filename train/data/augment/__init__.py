"""Vary a small text anew in each epoch."""
