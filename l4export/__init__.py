"""l4export compiles Llama 4 checkpoints into inference engines and proves that they compute what PyTorch computes."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
