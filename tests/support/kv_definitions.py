"""What a quantised KV cache holds and what attention makes of it, in plain NumPy, and the reference that reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Caches = dict[str, np.ndarray]


def codes(x: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """float32 x, scale -> integers: x * (1 / scale) in float32, halves to even, clipped. A scale of 0 counts as 1."""
    inverse = np.float32(1) / np.where(scale == 0, np.float32(1), scale)
    low = -(1 << (bits - 1))
    return np.clip(np.rint(x.astype(np.float32) * inverse), low, -low - 1).astype(np.int64)


def packed(code: np.ndarray, bits: int) -> np.ndarray:
    """Codes [..., d] as they are stored: int8, or two of 4 bits in a byte, biased by 8, the even channel below."""
    if bits == 8:
        return code.astype(np.int8)
    biased = (code + 8).astype(np.uint8)
    return biased[..., 0::2] | biased[..., 1::2] << 4


def unpacked(stored: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `packed`."""
    if bits == 8:
        return stored.astype(np.int64)
    return np.stack([stored & 15, stored >> 4], axis=-1).reshape(*stored.shape[:-1], -1).astype(np.int64) - 8


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x [B, heads, S, d], cos and sin [S, d/2]: every pair (2i, 2i + 1) turned by its angle."""
    a, b = x[..., 0::2], x[..., 1::2]
    return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, past: int, bias: np.ndarray | float = 0) -> np.ndarray:
    """q [B, H, S, d], k and v [B, K, T, d] -> causal attention float64 [B, S, H*d] of the tokens from `past` on."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat(group, axis=1).astype(np.float64) for x in (k, v))
    scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[3]) + bias
    scores[..., np.arange(k.shape[2]) > past + np.arange(q.shape[2])[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    y = weights / weights.sum(axis=-1, keepdims=True) @ v
    return y.transpose(0, 2, 1, 3).reshape(q.shape[0], q.shape[2], -1)


def scales_of(engine: Path) -> dict[str, np.ndarray]:
    """The scales in an engine's graph, by cache; none where the cache is float."""
    found = {}
    for node in ir.load(engine / "decoder.onnx").graph:
        if node.op_type == "GroupQueryAttention":
            for past, scale in zip(node.inputs[3:5], node.inputs[12:14], strict=False):
                constant = None if scale is None else scale.producer()
                assert past is not None and constant is not None
                found[str(past.name)] = constant.attributes.get_tensor("value").numpy()
    return found


@contextmanager
def reading(caches: Mapping[int, tuple[np.ndarray, np.ndarray]] | None, half: bool = False) -> Iterator[Caches]:
    """While it lasts, transformers' attention reads these keys and values instead of its own, which are yielded.

    `caches` gives for each layer keys and values [K, T, d] of one row; None changes nothing. What is yielded fills up
    with the layers' own, by the names of a decoder's inputs. `half` rounds queries and results to float16.
    """
    own: Caches = {}
    original = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.half().float() if half else x

    def attend(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        layer = module.layer_idx
        for kind, x in (("key", k), ("value", v)):
            own[f"past_key_values.{layer}.{kind}"] = x[0].numpy()
        if caches is not None:
            k, v = (torch.from_numpy(np.ascontiguousarray(x[None])) for x in caches[layer])
        y, weights = original(module, rounded(q), k, v, *args, **kwargs)
        return rounded(y), weights

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    try:
        yield own
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = original
