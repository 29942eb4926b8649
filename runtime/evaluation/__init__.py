"""Judge a model: loss on files, distance from another model, and the tasks of the lm-evaluation-harness."""
