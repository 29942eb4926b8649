"""Models of random weights, in the forms that we and the peers read."""
