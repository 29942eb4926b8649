"""The commands `adaptive train`, `runs` and `compare`."""
