"""Anthropic's messages, converted to chat completions and back."""
