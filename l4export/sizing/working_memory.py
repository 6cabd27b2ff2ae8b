"""An estimate, made from measurements, of the memory that an engine takes beside weights and KV cache.

With T = batch * min(512, context) tokens of one prefill call, D the hidden width, and `slots` the longest cache:

    working = process + max(one weight, call)
    process = 128 MiB                                     interpreter, ONNX Runtime, graph
    one weight                                            a kernel packs a copy of the largest while loading
    call    = T * 4 * (8 D + width)                       activations of one layer in float32; width is 4 I of a dense
                                                          block, 4 I + k (3 I + 2 D) of shared and k routed experts
            + batch * vocab * 4                           logits of the last position
            + T * context * 5                             all layouts but `chunked`: chunk masks, float and bool
            + T * heads * slots * 4                       attention scores of one layer, with fp16 caches only
            + 2 * dequantised floats                      fp8: of the head and of one layer's weights

`com.microsoft.GroupQueryAttention` of ONNX Runtime 1.31's CPU provider keeps no scores unless its type is float16. On a
model of 240 million parameters the peak of a prefill call of 512 or 2048 tokens (int4, int8, fp8, float32) was within a
fifth of this. For a GPU the formula is that of `l4export.engine.gpu_memory`.
"""

from __future__ import annotations

from l4export.compiler.plan import PREFILL_TOKENS
from l4export.engine.gpu_memory import feed_forward_width
from l4export.engine.kv_cache import kv_capacities
from l4export.model.config import ModelConfig
from l4export.sizing.engine_size import EngineSize

__all__ = ["working_bytes"]

_PROCESS = 128 << 20


def working_bytes(
    config: ModelConfig, size: EngineSize, kv_layout: str, kv_dtype: str, context: int, batch: int
) -> int:
    """Return the bytes of the formula above, for `batch` rows of up to `context` tokens each."""
    tokens = batch * min(PREFILL_TOKENS, context)
    call = tokens * 4 * (8 * config.hidden_size + feed_forward_width(config)) + batch * config.vocab_size * 4
    chunk = config.attention_chunk_size
    if kv_layout != "chunked" and any(config.chunked_layers) and chunk is not None and chunk < context:
        call += tokens * context * 5
    if kv_dtype == "fp16":
        call += tokens * config.num_attention_heads * max(kv_capacities(config, kv_layout, context)) * 4
    return _PROCESS + max(size.largest, call + 2 * size.dequantized)
