"""Whether an engine computes what PyTorch computes."""
