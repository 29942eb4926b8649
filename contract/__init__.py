"""Code that all packages share: errors, file names, the byte table, atomic writes. Needs only the standard library."""
