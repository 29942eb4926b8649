"""Training by several processes ("ranks") that hold one batch together, on torch.distributed."""
