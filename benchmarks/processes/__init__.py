"""Processes that benchmarks start."""
