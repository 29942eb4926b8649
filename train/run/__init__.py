"""The files of a run on disk: its folder, checkpoints, metrics and identity."""
