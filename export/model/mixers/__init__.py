"""Token mixers with a state of constant size, as operators of the graph. Mirrors `train/model/mixers`."""
