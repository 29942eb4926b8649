"""Decoded tokens beside peers: who takes part, how they take turns, and the tables of `decode.py`."""
