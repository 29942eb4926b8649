"""The commands `adaptive export` and `inspect`."""
