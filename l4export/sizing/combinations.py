"""The combinations of weights, KV layout and KV dtype that `l4export plan` compares, and what they lose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from l4export.model.config import ModelConfig

__all__ = ["WEIGHTS", "Combination", "combinations"]

WEIGHTS = {
    ("none", "fp32"): 0.0,
    ("none", "fp16"): 0.02,
    ("int8", "fp32"): 0.08,
    ("fp8", "fp32"): 0.19,
    ("int4", "fp32"): 1.66,
}
"""Per cent of perplexity that `--quant` and `--dtype` cost on the trained example (docs/reference/measurements.md).

They rank the choices; another model may lose several times as much of it."""

_CUDA_WEIGHTS = {("none", "fp16"): 0.02, ("int8", "fp16"): 0.08, ("int4", "fp16"): 1.66}
"""The same for `--target ort-cuda`, which computes in float16: integers are taken to lose what they lose in float32."""

_KV = {"fp32": 0.0, "fp16": 0.0, "int8": 0.02, "int4": 1.82}
"""The same for `--kv-dtype`."""


@dataclass(frozen=True)
class Combination:
    """A combination of options of `l4export build`."""

    quant: str
    dtype: str
    kv_layout: str
    kv_dtype: str
    target: str = "ort-cpu"

    @property
    def loss(self) -> float:
        """Per cent of perplexity that weights and caches of these types cost on the trained example, added."""
        return round({**WEIGHTS, **_CUDA_WEIGHTS}[self.quant, self.dtype] + _KV[self.kv_dtype], 2)


def combinations(config: ModelConfig, target: str) -> Iterator[Combination]:
    """Yield all combinations, by growing loss of weights.

    `concat` is left out, because it grows to the size of `static` and holds the old and the new caches at once. On a
    GPU caches are of the computing type, and `static` cannot mask chunks.
    """
    if target == "ort-cuda":
        layout = "chunked" if any(config.chunked_layers) else "static"
        yield from (Combination(quant, dtype, layout, dtype, target) for quant, dtype in _CUDA_WEIGHTS)
        return
    layouts = ("static", "chunked") if any(config.chunked_layers) else ("static",)
    for quant, dtype in WEIGHTS:
        for layout in layouts:
            for kv_dtype in _KV:
                yield Combination(quant, dtype, layout, kv_dtype)
