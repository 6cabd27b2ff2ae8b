"""The scales of a quantised KV cache, measured by running an engine over text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import Manifest
from l4export.errors import InputError

__all__ = ["METHOD", "kv_scales", "pieces"]

METHOD = "largest absolute value of each channel, of each pair of rotated channels"

_REACH = {8: 1.5, 4: 0.8}
"""The largest value that codes reach, as a multiple of the largest that was seen: 8 bits are fine enough to leave room
for what other text brings; 4 bits do better with finer steps, the rarest values clipped. KL of the trained example on
6500 tokens it was not calibrated on, one scale a channel: 8 bits with reach 1, 1.5, 2, 3 .0066, .0039, .0041, .0063;
4 bits with reach 0.7, 0.85, 1, 1.15 .059, .051, .055, .066.
"""


def kv_scales(
    engine_path: Path, manifest: Manifest, token_ids: Sequence[int], bits: int
) -> dict[str, NDArray[np.float32]]:
    """The scale of every channel of every cache: reach * max |x| / (2^(bits-1) - 1) over the tokens.

    A rotation mixes two channels, and how far depends on the position; their length does not. So for keys of layers
    with RoPE both channels of a pair have the scale of max sqrt(x_2i^2 + x_2i+1^2), which holds at positions that the
    text does not reach. The tokens are cut into sequences of at most the engine's `max_context`. Memory: the engine,
    with one sequence in its cache.

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
    from l4export.runtimes.cache.kv_cache import CacheSpec
    from l4export.runtimes.onnxruntime.engine import OnnxRuntimeEngine

    capacity = min(manifest.max_context, len(token_ids))
    session = OnnxRuntimeEngine(engine_path, manifest).session(capacity=capacity)
    names = CacheSpec.of(manifest).past
    rotated = {f"past_key_values.{layer}.key" for layer, rope in enumerate(manifest.model.rope_layers) if rope}
    largest: dict[str, NDArray[np.float32]] = {}
    for start in range(0, len(token_ids), capacity):
        session.reset()
        sequence = token_ids[start : start + capacity]
        for piece in pieces(len(sequence), manifest):
            session.append(sequence[piece], last_only=True)
            for name, cached in zip(names, session.tokens(0), strict=True):
                new = cached[:, piece.start - piece.stop :].astype(np.float32)
                peak = _peak(new, rotated=name in rotated)
                largest[name] = np.maximum(largest.get(name, peak), peak)
    return {name: _scale(name, peak, bits) for name, peak in largest.items()}


def pieces(tokens: int, manifest: Manifest) -> Iterator[slice]:
    """What of so many tokens is fed at once: never over the end of a chunk, whose keys may be gone afterwards."""
    start, chunk = 0, manifest.model.attention_chunk_size or tokens
    while start < tokens:
        stop = min(tokens, start + manifest.prefill_max_tokens, start - start % chunk + chunk)
        yield slice(start, stop)
        start = stop


def _peak(cached: NDArray[np.float32], rotated: bool) -> NDArray[np.float32]:
    """[K, slots, d] -> [K, 1, d]; channels 2i and 2i + 1 share the largest length of the pair where it is rotated."""
    if not rotated:
        return np.asarray(np.abs(cached).max(axis=1, keepdims=True))
    lengths = np.hypot(cached[..., 0::2], cached[..., 1::2])
    return np.asarray(lengths.max(axis=1, keepdims=True).repeat(2, axis=2))


def _scale(name: str, largest: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """A channel that was zero throughout gets the largest scale of its head's others, or one."""
    if not np.isfinite(largest).all():
        raise InputError(f"{name}: not finite on the calibration text; the checkpoint or the text is broken")
    others = largest.max(axis=2, keepdims=True)
    seen = np.where(largest > 0, largest, np.where(others > 0, others, 1))
    return np.asarray(_REACH[bits] * seen / (2 ** (bits - 1) - 1), dtype=np.float32)
