"""Search for a probable text: beam search, and the best of several drawn texts."""
