"""The model in ONNX by our own operators, a few nodes a layer. Mirrors `export/model`, which has standard ones."""
