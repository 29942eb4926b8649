"""Run the exported graph: one ONNX Runtime session, its caches, routes and costs."""
