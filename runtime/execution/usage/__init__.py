"""What a token used: its experts, heads and layers, and their cost."""
