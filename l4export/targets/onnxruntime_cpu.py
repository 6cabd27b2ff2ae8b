"""`--target ort-cpu`: ONNX Runtime's fused operators on CPUs; onnxruntime-genai opens the directory as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from l4export.engine.manifest import Runtime
from l4export.targets.genai_config import write_genai_config
from l4export.targets.lowering import fused_operators, fused_vision
from l4export.targets.target import GraphOptions, Target

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["NO_BFLOAT16", "ORT_CPU"]

NO_BFLOAT16 = {"bf16": "runs on ONNX Runtime's CPU provider, which has no bfloat16 MatMul"}


def _operators(options: GraphOptions) -> list[ir.passes.InPlacePass]:
    """Return the fused operators; on a CPU every product that is saved is worth a copy of what it gives."""
    from l4export import passes

    return [*fused_operators(options), *([passes.PackProjections()] if options.policy else [])]


ORT_CPU = Target(
    name="ort-cpu",
    summary="ONNX Runtime's fused operators, on CPUs",
    runtime=Runtime("onnxruntime", "cpu"),
    dtypes=("fp32", "fp16"),
    kv_layouts=("static", "chunked", "concat"),
    kv_dtypes=("fp32", "fp16", "int8", "int4"),
    weight_kinds=("int8", "int4", "fp8"),
    calibrates=True,
    rounds_activations=True,
    always_rounds=True,
    reasons=NO_BFLOAT16,
    lower=_operators,
    lower_vision=fused_vision,
    finish=write_genai_config,
)
