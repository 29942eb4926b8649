"""The nodes of the routers: experts, depth and exits."""
