"""What a vision tower takes of memory beside the bytes of its data files, on a CPU and on a GPU.

With n tiles in a call, D and I the tower's widths, N its patches of a tile and a class token, r rows of features a
tile, P the projector's width and W the decoder's:

    CPU      = copies + n * 4 * (3 side^2 + N (k D + 3 I) + r (I + 2 P + 2 W))    k is 8, of a tower in float16 10
    copies   = weights, of a tower in float16
    GPU      = weights / 20 + n * (12 side^2 + b (N (10 D + 3 I) + r (I + 2 P + 2 W)))    b bytes of the float type

ONNX Runtime's CPU provider multiplies float16 in float32: it keeps such weights, twice the bytes of their files, and
casts what comes between. `MultiHeadAttention` keeps no scores (unfused attention would take 4 * heads * N^2 more, 21 MB
a tile as released). Layers take turns. At the released width, which is 80 MB a tile, two layers took 94 % of all this
with 17 tiles, in either type. The twentieth is for what a GPU's allocator rounds and splits.
"""

from __future__ import annotations

from l4export.model.vision_config import VisionConfig

__all__ = ["cpu_tower_working", "gpu_tower_working"]

_FLOAT = 4
"""Bytes of a float32: of pixels, and of what the CPU provider computes in either type."""
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


def cpu_tower_working(config: VisionConfig, width: int, dtype: str, weights: int, tiles: int) -> int:
    """Bytes beside `weights`, the bytes of data files, of a tower in `dtype` before a decoder of `width` channels."""
    floats = _pixels(config) + _floats(config, width, kept=10 if dtype == "fp16" else 8)
    return (weights if dtype == "fp16" else 0) + tiles * _FLOAT * floats


def gpu_tower_working(config: VisionConfig, width: int, dtype: str, weights: int, tiles: int) -> int:
    """As `cpu_tower_working`, on a GPU."""
    call = _FLOAT * _pixels(config) + _BYTES[dtype] * _floats(config, width, kept=10)
    return weights // 20 + tiles * call


def _pixels(config: VisionConfig) -> int:
    return 3 * config.image_size**2


def _floats(config: VisionConfig, width: int, kept: int) -> int:
    """What one layer and the projector hold of a tile; `kept` is the formula's k."""
    inner = config.intermediate_size
    layer = (config.grid**2 + 1) * (kept * config.hidden_size + 3 * inner)
    return layer + config.rows_per_tile * (inner + 2 * config.projector_size + 2 * width)
