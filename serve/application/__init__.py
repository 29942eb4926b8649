"""The ASGI application: its routes and middleware, how it starts and how it drains."""
