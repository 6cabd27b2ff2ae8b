"""The scales of a quantised KV cache, measured by running an engine over text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from l4export.errors import InputError
from l4export.manifest import Manifest

__all__ = ["METHOD", "kv_scales"]

METHOD = "largest absolute value of each channel"


def kv_scales(
    engine_path: Path, manifest: Manifest, token_ids: Sequence[int], bits: int
) -> dict[str, NDArray[np.float32]]:
    """The scale of every channel of every cache: max |x| / (2^(bits-1) - 1) over the tokens.

    The tokens are cut into sequences of at most the engine's `max_context`. Memory: the engine, with one sequence in
    its cache.

    Args:
        engine_path: An engine's directory; its manifest need not be written yet.
        manifest: Its manifest; its caches are float.
        token_ids: What to run.
        bits: 8 or 4.

    Returns:
        By the name of the cache's input, such as `past_key_values.0.key`: float32 [K, 1, d].

    Raises:
        InputError: a key or value that is not finite.
        EnvironmentLacks: onnxruntime is missing.
    """
    from l4export.runtimes.engine import Engine

    capacity = min(manifest.max_context, len(token_ids))
    session = Engine(engine_path, manifest).session(capacity=capacity)
    step = min(manifest.prefill_max_tokens, manifest.model.attention_chunk_size or capacity)
    largest: dict[str, NDArray[np.float32]] = {}
    for start in range(0, len(token_ids), capacity):
        session.reset()
        sequence = token_ids[start : start + capacity]
        for at in range(0, len(sequence), step):
            session.append(list(sequence[at : at + step]), last_only=True)
            for name, cached in session.caches().items():
                peak = np.abs(cached[0]).max(axis=1, keepdims=True).astype(np.float32)
                largest[name] = np.maximum(largest.get(name, peak), peak)
    return {name: _scale(name, peak, bits) for name, peak in largest.items()}


def _scale(name: str, largest: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """A channel that was zero throughout gets the largest scale of its head's others, or one."""
    if not np.isfinite(largest).all():
        raise InputError(f"{name}: not finite on the calibration text; the checkpoint or the text is broken")
    levels = np.float32(2 ** (bits - 1) - 1)
    others = largest.max(axis=2, keepdims=True)
    return np.where(largest > 0, largest, np.where(others > 0, others, levels)) / levels
