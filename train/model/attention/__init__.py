"""Attention: which positions a token reads, with how many heads, and how positions enter."""
