"""The nodes of the feed-forward part: experts, also empty ones, and their weighted sum."""
