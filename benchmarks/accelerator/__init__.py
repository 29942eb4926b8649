"""Parts of `gpu.py`, each a process of its own, and their tables."""
