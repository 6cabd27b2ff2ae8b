"""Optimisation profiles of a compiled engine: how many new tokens a call may have."""

from __future__ import annotations

__all__ = ["TokenRange", "token_profiles"]

TokenRange = tuple[int, int, int]
"""The smallest, the likeliest and the largest number of new tokens in a call."""


def token_profiles(quantized: bool, kv_layout: str, prefill_tokens: int) -> list[TokenRange]:
    """Return the tokens of a call in each optimisation profile.

    There are two for quantised weights: decode, and prompts in pieces of up to `prefill_tokens`. TensorRT stores a
    float weight once for each profile, so without quantisation there is one for all calls. With two kinds of caches
    (layout `chunked`) version 1.7 crashes on a profile of exactly one token beside another, hence up to two there.
    """
    if not quantized or prefill_tokens == 1:
        return [(1, 1, prefill_tokens)]
    return [(1, 1, 2 if kv_layout == "chunked" else 1), (2, prefill_tokens, prefill_tokens)]
