"""The `model:`, `lora:` and `losses:` sections of a run's config, and the rules between them."""
