"""Endpoints: read a body, submit jobs, and answer at once or token by token."""
