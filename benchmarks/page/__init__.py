"""Tables, and sections of the page of results."""
