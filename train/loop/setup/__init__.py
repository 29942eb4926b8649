"""What is decided before the first step: the model, its compilation, the matmul backend and the files of the run."""
