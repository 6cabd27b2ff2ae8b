"""How many bytes a KV cache takes: the formula that sessions allocate by and `l4export plan` reports.

Layer l holds K and V, each [batch, kv_heads, capacity_l, head_dim], at `bits` bits an element:

    bytes      = sum over l of 2 * batch * kv_heads * capacity_l * head_dim * bits / 8
    capacity_l = min(attention_chunk_size, max_context)    for a layer with chunked attention in layout `chunked`
                 max_context                               for every other layer, and in every other layout

The shapes are those of `past_key` and `past_value` of `com.microsoft.GroupQueryAttention`; int4 packs two neighbours of
head_dim into a byte. Scales of int8 and int4 are constants of the graph and no part of the cache. A chunked layer needs
no more slots: its query at position p sees keys C * floor(p / C) .. p only (C = attention_chunk_size) [transformers,
`masking_utils.py`, `chunked_overlay`], so the cache empties itself at every chunk boundary.
"""

from __future__ import annotations

from dataclasses import dataclass

from l4export.model.config import ModelConfig

__all__ = [
    "KV_BITS",
    "KV_DTYPES",
    "KV_LAYOUTS",
    "KV_STORAGE",
    "KVStorage",
    "kv_bytes",
    "kv_capacities",
    "layer_kv_bytes",
    "prefill_cut",
]

KV_LAYOUTS = ("concat", "static", "chunked")

KV_DTYPES = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
"""Bits of an element, by `--kv-dtype`."""

KV_BITS = {name: KV_DTYPES[name] for name in ("int8", "int4")}
"""Bits of an element, for the types that need scales."""


@dataclass(frozen=True)
class KVStorage:
    """How caches lie in memory: NumPy's name of their dtype, and how many channels share one element of it."""

    dtype: str
    channels_per_element: int


KV_STORAGE = {
    "fp32": KVStorage("float32", 1),
    "fp16": KVStorage("float16", 1),
    "bf16": KVStorage("bfloat16", 1),
    "int8": KVStorage("int8", 1),
    "int4": KVStorage("uint8", 2),
}
"""By the dtype of keys and values."""


def kv_capacities(config: ModelConfig, layout: str, max_context: int) -> tuple[int, ...]:
    """Return the slots of each layer, for sequences of up to `max_context` tokens.

    `layout` is `chunked`, `static` or `concat`, whose caches have as many slots as there are tokens.
    """
    chunk = config.attention_chunk_size
    if layout != "chunked" or chunk is None:
        return (max_context,) * config.num_hidden_layers
    return tuple(min(chunk, max_context) if chunked else max_context for chunked in config.chunked_layers)


def prefill_cut(config: ModelConfig, layout: str) -> int | None:
    """The tokens of one call must not lie on both sides of a multiple of this; None: they may lie anywhere."""
    return config.attention_chunk_size if layout == "chunked" else None


def layer_kv_bytes(config: ModelConfig, capacity: int, dtype: str, batch: int = 1) -> int:
    """Bytes of one layer's keys and values of `capacity` slots; `dtype` is a name of `KV_DTYPES`, or bf16."""
    row = config.head_dim * {**KV_DTYPES, "bf16": 16}[dtype] // 8  # whole bytes: head_dim is even
    return 2 * batch * config.num_key_value_heads * capacity * row


def kv_bytes(config: ModelConfig, layout: str, dtype: str, max_context: int, batch: int = 1) -> int:
    """Bytes of all layers' keys and values, for `batch` rows of up to `max_context` tokens each."""
    capacities = kv_capacities(config, layout, max_context)
    return sum(layer_kv_bytes(config, capacity, dtype, batch) for capacity in capacities)
