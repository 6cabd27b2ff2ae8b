"""Llama 4 itself: its configuration, its decoder graph, the names of its weights."""
