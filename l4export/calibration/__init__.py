"""Numbers that are measured on a text: codes of weights, scales of caches and activations."""
