"""The configuration of a run, one file per section that no other package owns."""
