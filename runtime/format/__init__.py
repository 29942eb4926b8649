"""Read an exported model: manifest, digests, external data."""
