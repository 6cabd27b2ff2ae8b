"""The engines of the conformance set: every variant, layout, dtype of keys and values, and kind of weights."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from l4export.checkpoint.sample import write_sample
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.kv_cache import KV_BITS
from l4export.quantization.policy import standard_policy
from workshop import random_ids

__all__ = ["ALL", "QUICK", "EngineKind", "build_engine"]

MAX_CONTEXT = 96
"""Six chunks of the tiny models."""


@dataclass(frozen=True)
class EngineKind:
    """How an engine is built from a tiny checkpoint; one that `sees` also has a tokenizer and a chat template."""

    variant: str
    layout: str
    kv_dtype: str = "fp32"
    weights: str = "float"
    sees: bool = False
    target: str = "ort-cpu"

    def __str__(self) -> str:
        words = [self.variant, self.layout, self.kv_dtype, self.weights, *(["sees"] if self.sees else [])]
        return "-".join([*words, *([self.target] if self.target != "ort-cpu" else [])])


QUICK = (
    EngineKind("scout", "chunked", sees=True),
    EngineKind("maverick", "static", "int8", "int4"),
    EngineKind("mobile", "concat"),
    EngineKind("scout", "chunked", weights="int4", target="cpu"),
)

ALL = (
    *(
        EngineKind(*kind)
        for kind in itertools.product(
            ("scout", "maverick", "guard", "mobile"),
            ("static", "chunked", "concat"),
            ("fp32", "fp16", "int8", "int4"),
            ("float", "int8", "int4"),
        )
    ),
    *(EngineKind("scout", layout, sees=True) for layout in ("static", "chunked", "concat")),
    *(
        EngineKind(*kind, target="cpu")
        for kind in itertools.product(
            ("scout", "maverick", "mobile"), ("static", "chunked", "concat"), ("fp32", "int8"), ("int8", "int4")
        )
    ),
)


def build_engine(kind: EngineKind, root: Path) -> Path:
    """The engine's directory below `root`, built if it is not there."""
    checkpoint, path = root / f"{kind.variant}-{kind.sees}", root / str(kind)
    if not checkpoint.exists():
        write_sample(checkpoint, kind.variant, "tiny", seed=7, vision=kind.sees)
    if not path.exists():
        calibration = root / "calibration_ids"
        calibration.write_text(" ".join(map(str, random_ids(400, seed=9))))
        options = {"policy": standard_policy(kind.weights)} if kind.weights != "float" else {}
        calibrate = calibration if kind.kv_dtype in KV_BITS else None
        build(
            checkpoint,
            path,
            BuildOptions(
                target=kind.target,
                max_context=MAX_CONTEXT,
                kv_layout=kind.layout,
                kv_dtype=kind.kv_dtype,
                kv_calibrate=calibrate,
                jobs=1,
                **options,
            ),
        )
    return path
