"""Conversations into prompts by a model's chat template, and tool calls out of its text."""
