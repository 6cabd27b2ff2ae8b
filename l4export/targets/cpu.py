"""`--target cpu`: l4export's own kernels for products with quantised weights, ONNX Runtime's operators for the rest.

The kernels (`runtimes/cpp/kernels`) read weights where they lie in the mapped data files, so that an engine opens at
once and processes share its weights. They compute in float32, with scales in float16. What no rule of the policy names
and FP8 weights stay with ONNX Runtime, as for `ort-cpu`.

There is no `genai_config.json`: onnxruntime-genai opens no library of operators outside the engine's directory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l4export.engine.manifest import Runtime
from l4export.targets.lowering import fused_operators, fused_vision
from l4export.targets.target import GraphOptions, Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from l4export.quantization.policy import Policy
    from l4export.quantization.schemes import ScaleDtype

__all__ = ["CPU"]

_SCALES: ScaleDtype = "float16"


def _operators(options: GraphOptions) -> list[ir.passes.InPlacePass]:
    """The fused operators; then those over integer weights are replaced by the kernels' own."""
    from l4export import passes

    return [
        *fused_operators(options, scale_dtype=_SCALES),
        *(
            [
                # codes and scales in tiles
                passes.TileProducts(),
                passes.TileExperts(),
                # one operator a feed-forward layer
                passes.FuseGatedUnits(),
                passes.AbsorbSharedExpert(),
                passes.PackProjections(),
            ]
            if options.policy
            else []
        ),
    ]


def _vision(policy: Policy | None) -> list[ir.passes.InPlacePass]:
    """The fused operators of a vision tower, and the kernels' own."""
    from l4export import passes

    return [*fused_vision(policy, scale_dtype=_SCALES), *([passes.TileProducts()] if policy else [])]


CPU = Target(
    name="cpu",
    summary="l4export's own kernels for quantised weights, ONNX Runtime for the rest, on CPUs",
    runtime=Runtime("onnxruntime", "cpu"),
    dtypes=("fp32",),
    kv_layouts=("static", "chunked", "concat"),
    kv_dtypes=("fp16", "int8", "int4"),
    weight_kinds=("int8", "int4", "fp8"),
    calibrates=True,
    scale_dtype=_SCALES,
    rounds_activations=True,
    reasons=dict.fromkeys(("fp16", "bf16"), "computes in fp32, as its kernels do"),
    lower=_operators,
    lower_vision=_vision,
)
