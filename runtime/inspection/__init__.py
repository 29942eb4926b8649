"""Show which experts, heads and layers serve which tokens."""
