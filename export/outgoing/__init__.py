"""Write runs in the formats of other programs: `hf` (safetensors and config of Hugging Face) and `gguf` (llama.cpp)."""
