"""Windows of a token stream: their order, and the batches of arrays to train on."""
