"""Routers and the controllers that keep their averages: experts, heads, depth and exits per token."""
