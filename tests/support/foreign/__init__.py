"""Models, tokenizers and templates of others, in small."""
