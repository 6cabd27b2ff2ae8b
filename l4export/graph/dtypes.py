"""Float types by the names that options and manifests use."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["FLOATS"]

FLOATS = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
