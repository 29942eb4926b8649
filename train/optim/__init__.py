"""Optimizers, learning rate schedules, clipping and batch sizes."""
