"""The same application on several machines, deployed by Ray Serve."""
