"""The least ONNX Runtime that computes a graph as the version does that l4export is tested with.

Found by executing engines of every kind with the releases from 1.19 on, on a CPU, and comparing logits with those of
1.31. A release that was wrong, or failed, with one form of an operator is trusted with none.

| release | what it lacked |
|---|---|
| 1.23 | opset 24: no graph is loaded |
| 1.24 | a kernel for `TensorScatter` |
| 1.26 | a kernel for `GroupQueryAttention` with a quantised cache |
| 1.27 | that kernel, under a mask: logits were of another model. `DequantizeLinear` before a product: not loaded |
| 1.30 | the attribute `accuracy_level` of `QMoE` |
"""

from __future__ import annotations

import itertools

import onnx_ir as ir

__all__ = ["least_onnxruntime"]

_OPSET_24 = (1, 24)
_TESTED = (1, 31)
"""What is required for whatever older releases have not executed: kernels of other providers, further operators."""

_ORT = "com.microsoft"
_LEAST = {
    ("", "DequantizeLinear"): (1, 28),
    ("", "TensorScatter"): (1, 25),
    (_ORT, "FusedMatMul"): _OPSET_24,
    (_ORT, "GatherBlockQuantized"): _OPSET_24,
    (_ORT, "GroupQueryAttention"): _OPSET_24,
    (_ORT, "MatMulNBits"): _OPSET_24,
    (_ORT, "MoE"): _OPSET_24,
    (_ORT, "MultiHeadAttention"): _OPSET_24,
    (_ORT, "QMoE"): (1, 31),
    (_ORT, "QuickGelu"): _OPSET_24,
    (_ORT, "RotaryEmbedding"): _OPSET_24,
    (_ORT, "SkipSimplifiedLayerNormalization"): _OPSET_24,
}
_QUANTISED_CACHE = (1, 28)


def least_onnxruntime(model: ir.Model, provider: str) -> str:
    """The version, such as "1.24", that a lowered graph needs on an execution provider, `cpu` or `cuda`."""
    if provider != "cpu":
        return _text(_TESTED)
    of_functions = (function.all_nodes() for function in model.functions.values())
    return _text(max(map(_least, itertools.chain(model.graph.all_nodes(), *of_functions))))


def _least(node: ir.Node) -> tuple[int, int]:
    if node.op_type == "GroupQueryAttention" and "k_quant_type" in node.attributes:
        return _QUANTISED_CACHE
    return _LEAST.get((node.domain, node.op_type), _TESTED if node.domain == _ORT else _OPSET_24)


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
