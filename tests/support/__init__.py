"""Helpers of several test files: tiny models, runs, graphs, texts and ranks."""
