"""Turns a checkpoint into an exported model."""
