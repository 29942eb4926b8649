"""The model in ONNX, file by file as in `train/model`."""
