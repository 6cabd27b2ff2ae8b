"""`--target ort-cpu`: ONNX Runtime's fused operators on CPUs; onnxruntime-genai opens the directory as it is."""

from __future__ import annotations

from l4export.engine.manifest import Runtime
from l4export.targets.genai_config import write_genai_config
from l4export.targets.lowering import fused_operators, fused_vision
from l4export.targets.target import Target

__all__ = ["NO_BFLOAT16", "ORT_CPU"]

NO_BFLOAT16 = {"bf16": "runs on ONNX Runtime's CPU provider, which has no bfloat16 MatMul"}


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
    reasons=NO_BFLOAT16,
    lower=fused_operators,
    lower_vision=fused_vision,
    finish=write_genai_config,
)
