"""Measure an exported model: time, memory bandwidth, perplexity."""
