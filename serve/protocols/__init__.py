"""Bodies of each protocol, and their conversion to jobs and from events; nothing here waits."""
