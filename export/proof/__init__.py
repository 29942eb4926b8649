"""Prove that the exported graph decides, computes and skips as the torch model does."""
