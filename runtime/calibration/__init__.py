"""Find the thresholds of least loss for each share of the compute."""
