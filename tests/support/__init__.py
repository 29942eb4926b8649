"""What several test files share: tiny models, runs, graphs, texts and ranks."""
