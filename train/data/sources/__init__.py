"""From a path to documents: files are found, scanned and cut into segments."""
