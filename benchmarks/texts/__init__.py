"""Texts that benchmarks decode."""
