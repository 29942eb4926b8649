"""The measurements of a run while it trains: of each step, each task and the held-out text."""
