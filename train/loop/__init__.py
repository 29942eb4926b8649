"""The training loop: one step after another until the run ends."""
