"""Servers on tiny models, and parts of them that fail or wait on command."""
