"""From one setting between 0 and 1 to the thresholds of the graph."""
