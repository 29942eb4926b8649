"""Build ONNX graphs node by node, with their weights."""
