"""Texts that travel with the package."""
