"""What exports read of a run besides its weights: its files, and the gates of a task."""
