"""Learning from a teacher, and of small dials from the full one."""
