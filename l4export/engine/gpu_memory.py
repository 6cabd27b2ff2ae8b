"""What an `ort-cuda` engine takes of a GPU's memory: the formula of `l4export plan`, and of the check before loading.

    total   = weights + caches + working
    weights = bytes of the data files: each lies on the GPU once, in the layout that its kernel reads
    caches  = l4export.engine.kv_cache.kv_bytes
    working = weights / 20 + 1 GiB + call + floats

    call    = T * 2 * (8 D + width) + logits              activations of one layer in float16; width as in the CPU's formula
    logits  = batch * vocab * 6                           of each row's last token, float16 and float32
    floats  = 2 * the largest matrix but the experts      quantised: a prompt's product with a matrix dequantises it first

T = batch * min(tokens of a call, context) are the tokens of one prefill call, D is the hidden width, and width is 4 I of
a dense block, 4 I + k (3 I + 2 D) of shared and k routed experts, I being the width of one. The 5 % are for the arena,
which rounds and splits. 1 GiB is for CUDA's context, the code of the kernels, and the workspaces of cuBLAS and cuDNN.
Working memory is a bound that is stated, not a measurement. All logits of a prompt, as parity fetches them, take
T * vocab * 6 bytes instead of `logits`.
"""

from __future__ import annotations

from dataclasses import dataclass

from l4export.engine.kv_cache import kv_bytes
from l4export.model.config import ModelConfig

__all__ = ["GpuMemory", "feed_forward_width", "gpu_memory", "largest_context"]

_BASE = 1 << 30
_FLOAT = 2
"""Bytes of a float16."""


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


def gpu_memory(
    config: ModelConfig,
    weights: int,
    quantised: bool,
    kv_layout: str,
    kv_dtype: str,
    call_tokens: int,
    context: int,
    batch: int = 1,
) -> GpuMemory:
    """The formula above, for `batch` rows of up to `context` tokens and calls of up to `call_tokens` a row.

    `weights` are the bytes of the data files; `quantised` says whether there are integers among them.
    """
    tokens = batch * min(call_tokens, context)
    call = tokens * _FLOAT * (8 * config.hidden_size + feed_forward_width(config))
    logits = batch * config.vocab_size * (_FLOAT + 4)
    floats = _FLOAT * _largest_matrix(config) if quantised else 0
    caches = kv_bytes(config, kv_layout, kv_dtype, context, batch)
    return GpuMemory(weights, caches, weights // 20 + _BASE + call + logits + floats)


def largest_context(
    free: int, config: ModelConfig, weights: int, quantised: bool, kv_layout: str, kv_dtype: str, call_tokens: int
) -> int:
    """The most tokens, up to the model's limit, of one row that fit `free` bytes; 0 if not even one does."""
    low, high = 0, config.max_position_embeddings
    while low < high:
        middle = (low + high + 1) // 2
        need = gpu_memory(config, weights, quantised, kv_layout, kv_dtype, call_tokens, middle)
        low, high = (middle, high) if need.total <= free else (low, middle - 1)
    return low


def feed_forward_width(config: ModelConfig) -> int:
    """The number of floats that the widest feed-forward block holds for a token."""
    inner, k = config.intermediate_size, config.num_experts_per_tok
    moe = 4 * inner + k * (3 * inner + 2 * config.hidden_size) if config.moe_layers else 0
    dense = 4 * config.intermediate_size_mlp if len(config.moe_layers) < config.num_hidden_layers else 0
    return max(moe, dense)


def _largest_matrix(config: ModelConfig) -> int:
    """Elements of the largest matrix that is no expert: the head's, a feed-forward's, or that of q, k and v."""
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    widest = max(config.vocab_size, 2 * config.intermediate_size_mlp, 2 * config.intermediate_size)
    return config.hidden_size * max(widest, heads * config.head_dim)
