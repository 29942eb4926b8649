"""The graph of the target `cuda`: the portable graph with the operators that suit a GPU."""
