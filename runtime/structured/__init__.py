"""Texts that match a JSON schema, a regular expression or a grammar, by llguidance (extra `structured`)."""
