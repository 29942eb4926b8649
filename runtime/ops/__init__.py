"""Operators of our own for ONNX Runtime's CPU provider: the layout of their weights, and the compiled library."""
