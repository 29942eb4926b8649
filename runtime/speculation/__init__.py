"""Guess the next tokens, so that one pass can check several; what is generated stays the same."""
