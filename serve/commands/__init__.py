"""Commands of `serve`: the server."""
