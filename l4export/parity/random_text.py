"""Seeded random tokens, which all comparisons feed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import Manifest

__all__ = ["random_text"]


def random_text(manifest: Manifest, tokens: int, seed: int) -> NDArray[np.int64]:
    """Ids int64 [tokens] of the engine's vocabulary. None is the image token, which stands for no text."""
    vocab = manifest.model.vocab_size
    ids = np.random.default_rng(seed).integers(0, vocab, tokens, dtype=np.int64)
    if manifest.vision is not None:
        ids[ids == manifest.vision.image_token_id] = (manifest.vision.image_token_id + 1) % vocab
    return ids
