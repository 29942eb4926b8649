"""Peers of the training benchmarks."""
