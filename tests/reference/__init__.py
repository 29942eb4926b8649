"""The plain model in numpy, token by token: slow, and easy to check by reading."""
