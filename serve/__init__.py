"""Faces people: the command line, later the HTTP server and the web page."""
