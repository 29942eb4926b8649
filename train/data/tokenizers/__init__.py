"""Tokenizers: trained, taken from a file or from another run, and the check of what they lose."""
