"""The feed-forward part: experts, their dispatch, and the compiled kernel for a CPU."""
