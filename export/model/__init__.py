"""The model in ONNX. The files, functions and their order mirror `train/model`."""
