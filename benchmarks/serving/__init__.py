"""Servers, a client and the tables of `serve.py` and `serve_soak.py`."""
