"""Images into what the vision tower takes, bit for bit as transformers does it, with NumPy and Pillow alone."""
