"""The interfaces to users: the command line, later the HTTP server and the web page."""
