"""OpenAI's responses, converted to chat completions and back."""
