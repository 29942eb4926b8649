"""The model in torch: one file per part of it."""
