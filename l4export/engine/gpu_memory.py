"""What an `ort-cuda` engine takes of a GPU's memory: the formula of `l4export plan`, and of the check before loading.

    total   = weights + caches + working
    weights = bytes of the data files: each lies on the GPU once, in the layout that its kernel reads
    caches  = l4export.engine.kv_cache.kv_bytes
    working = weights / 20 + 1 GiB + call + floats

    call    = T * 2 * (8 D + width) + logits     activations of one layer in float16
    logits  = batch * vocab * 6                  of each row's last token, float16 and float32
    floats  = 2 * the most dequantised at once   quantised: a prompt's product dequantises its matrix, no expert's

T = batch * min(tokens of a call, context) are the tokens of one prefill call, D is the hidden width, and width is 4 I
of a dense block, 4 I + k (3 I + 2 D) of shared and k routed experts, I being the width of one. The twentieth is for the
arena, which rounds and splits. 1 GiB is for CUDA's context, the code of the kernels, and cuBLAS's and cuDNN's
workspaces. Of a matrix with more than 65,536 rows and 256 MiB, 32,768 rows are dequantised at a time [ONNX Runtime,
docs/contrib_ops/cuda/matmul_nbits.md, section 5]. All logits of a prompt, as parity fetches them, take T * vocab * 6
bytes instead of `logits`.

Eight full-size layers of Scout in INT4 took 13.04 GB of an H200 with 512 tokens and 12.99 GB with 8,192, 98 and 96 % of
this (onnxruntime-gpu 1.31.1; `make test-gpu`).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

from l4export.engine.kv_cache import kv_bytes
from l4export.model.config import ModelConfig

__all__ = ["GpuEngine", "GpuMemory", "feed_forward_width", "gpu_memory", "largest_context"]

_BASE = 1 << 30
_FLOAT = 2
"""Bytes of a float16."""
_WHOLE_ROWS, _WHOLE_BYTES, _ROWS_AT_A_TIME = 65536, 256 << 20, 32768
"""A matrix is dequantised whole unless it is larger than both; else so many rows at a time."""


@dataclass(frozen=True)
class GpuEngine:
    """What the formula asks of an engine.

    Attributes:
        config: Its model.
        weights: Bytes of its data files.
        quantised: Whether there are integers among them.
        kv_layout: `chunked` or `static`.
        kv_dtype: Of the caches, such as `fp16`.
        call_tokens: The most tokens of a row in one call.
    """

    config: ModelConfig
    weights: int
    quantised: bool
    kv_layout: str
    kv_dtype: str
    call_tokens: int


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of weights, of caches, and of working memory."""

    weights: int
    caches: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.caches + self.working


def gpu_memory(engine: GpuEngine, context: int, batch: int = 1) -> GpuMemory:
    """The formula above, for `batch` rows of up to `context` tokens."""
    config = engine.config
    tokens = batch * min(engine.call_tokens, context)
    call = tokens * _FLOAT * (8 * config.hidden_size + feed_forward_width(config))
    logits = batch * config.vocab_size * (_FLOAT + 4)
    floats = _dequantised_at_once(config) if engine.quantised else 0
    caches = kv_bytes(config, engine.kv_layout, engine.kv_dtype, context, batch)
    return GpuMemory(engine.weights, caches, engine.weights // 20 + _BASE + call + logits + floats)


def largest_context(engine: GpuEngine, fits: Callable[[GpuMemory], bool], batch: int = 1) -> int:
    """The most tokens a row, up to the model's limit, whose memory fits; 0 if not even one token's does."""
    contexts = range(1, engine.config.max_position_embeddings + 1)
    return bisect.bisect_left(contexts, True, key=lambda context: not fits(gpu_memory(engine, context, batch)))


def feed_forward_width(config: ModelConfig) -> int:
    """The number of floats that the widest feed-forward block holds for a token."""
    inner, k = config.intermediate_size, config.num_experts_per_tok
    moe = 4 * inner + k * (3 * inner + 2 * config.hidden_size) if config.moe_layers else 0
    dense = 4 * config.intermediate_size_mlp if len(config.moe_layers) < config.num_hidden_layers else 0
    return max(moe, dense)


def _dequantised_at_once(config: ModelConfig) -> int:
    """The most bytes that a product makes of its matrix: the head's, a feed-forward's, or that of q, k and v."""
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    inner = max(config.intermediate_size_mlp, config.intermediate_size)
    return max(_floats(rows, config.hidden_size) for rows in (config.vocab_size, 2 * inner, heads * config.head_dim))


def _floats(rows: int, columns: int) -> int:
    """Bytes of float16 that are made of a matrix at a time."""
    whole = _FLOAT * rows * columns
    return _FLOAT * _ROWS_AT_A_TIME * columns if rows > _WHOLE_ROWS and whole > _WHOLE_BYTES else whole
