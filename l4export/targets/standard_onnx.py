"""`--target onnx`: standard operators alone, for any ONNX runtime; the oracle for TensorRT's numbers."""

from __future__ import annotations

from l4export.engine.manifest import Runtime
from l4export.targets.genai_config import write_genai_config
from l4export.targets.lowering import standard_operators, standard_vision
from l4export.targets.onnxruntime_cpu import NO_BFLOAT16
from l4export.targets.target import CACHES_IN_PLACE, Target

__all__ = ["ONNX"]

ONNX = Target(
    name="onnx",
    summary="standard ONNX operators alone",
    runtime=Runtime("onnxruntime", "cpu"),
    dtypes=("fp32", "fp16"),
    kv_layouts=("static", "chunked"),
    kv_dtypes=(),
    weight_kinds=("int8", "int4", "fp8"),
    activations=("fp8",),
    positive_scales=True,
    reasons={**CACHES_IN_PLACE, **NO_BFLOAT16},
    lower=standard_operators,
    lower_vision=standard_vision,
    finish=write_genai_config,
)
