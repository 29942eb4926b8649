"""Runs an exported model: numpy, onnxruntime and tokenizers, never torch, never onnx."""
