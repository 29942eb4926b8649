"""Text files of any encoding and compression, and messages for those that cannot be read."""
