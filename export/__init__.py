"""Turn a checkpoint into an exported model."""
