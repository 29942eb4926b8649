"""Read models that other programs wrote, and write each as a run: `huggingface` folders and `gguf` files."""
