"""Prove that the exported graph decides and skips as the model in torch does."""
