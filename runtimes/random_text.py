"""Seeded token ids, for what is measured on any text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from l4export.engine.described import Described

__all__ = ["random_text"]


def random_text(manifest: Described, count: int, seed: int = 0) -> NDArray[np.int64]:
    """`count` ids of the vocabulary, int64 [count], none of which stands for a part of an image."""
    vocab = manifest.model.vocab_size
    ids: NDArray[np.int64] = np.random.default_rng(seed).integers(0, vocab, count, dtype=np.int64)
    if manifest.vision is not None:
        image = manifest.vision.image_token_id
        ids[ids == image] = (image + 1) % vocab
    return ids
