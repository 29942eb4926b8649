"""Models in the folders of Hugging Face: safetensors, config and tokenizer, read without transformers."""
