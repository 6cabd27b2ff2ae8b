"""`--target ort-cpu`: ONNX Runtime's fused operators on CPUs; onnxruntime-genai opens the directory as it is."""

from __future__ import annotations

from l4export.engine.manifest import Runtime
from l4export.targets.genai_config import GENAI_CONFIG, GENAI_LAYOUTS, genai_config
from l4export.targets.lowering import fused_operators
from l4export.targets.target import Target, UnfinishedEngine

__all__ = ["NO_BFLOAT16", "ORT_CPU", "write_genai_config"]

NO_BFLOAT16 = {"bf16": "runs on ONNX Runtime's CPU provider, which has no bfloat16 MatMul"}


def write_genai_config(engine: UnfinishedEngine) -> list[str]:
    """Write genai_config.json for layouts that onnxruntime-genai runs correctly; the names of what was written."""
    if engine.kv_layout not in GENAI_LAYOUTS:
        return []
    (engine.directory / GENAI_CONFIG).write_text(genai_config(engine), encoding="utf-8")
    return [GENAI_CONFIG]


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
    finish=write_genai_config,
)
