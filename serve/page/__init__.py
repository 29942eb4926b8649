"""The web page: a chat in which each token shows the compute that it took."""
