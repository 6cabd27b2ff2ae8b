"""Codes of experts in the order in which CUDA's kernel reads them."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.conditions import require_none
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import nodes_of
from l4export.quantization.packed_codes import PackedCodes, packable
from l4export.weights.evaluation import Output
from l4export.weights.recipes import Recipe

__all__ = ["PackExpertWeights"]

_CODES = {2: (3, 11), 5: (6, 12)}
"""Inputs of `QMoE` that are codes, and those that are their scales and zero points."""

_MARK, _RAW, _PACKED = "weights_prepacked", 0, -1
"""The schema's attribute: 0 for codes [E, N, K * bits / 8] as they are, -1 for the order of the execution provider."""


class PackExpertWeights(ir.passes.InPlacePass):
    """Packs the codes of every `QMoE` beforehand (`weights_prepacked=-1`), so that loading makes no second copy.

    The order is that of `l4export.engine.weight_layout`: shapes, scales and zero points stay as they are. Experts whose
    matrices do not have it stay as they are (`weights_prepacked=0`).

    **Only CUDA's kernel reads this order.** ONNX Runtime's CPU provider ignores the attribute and computes something
    else without an error. So this pass is the last one, and the graph before it goes into the engine too.

    Raises:
        onnx_ir.passes.PreconditionError: experts are not fused, or not marked.
    """

    def requires(self, model: ir.Model) -> None:
        """Every `QMoE` says what order its codes have."""
        require_none(model, "MoE", DOMAIN, "run FuseExperts and QuantizeWeightsForOnnxRuntime first")
        for node in nodes_of(model, "QMoE", "com.microsoft"):
            if _MARK not in node.attributes:
                raise ir.passes.PreconditionError(f"{node.name}: run MarkRawExpertWeights first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Pack the codes of every `QMoE` that has them raw, if both its weights can be packed."""
        packed = False
        for node in nodes_of(model, "QMoE", "com.microsoft"):
            raw = node.attributes.get_int(_MARK) == _RAW
            if raw and all(packable(_recipe(node, index)) for index in _CODES):
                for codes, others in _CODES.items():
                    _pack(node, codes, others)
                node.attributes[_MARK] = ir.AttrInt64(_MARK, _PACKED)
                packed = True
        return ir.passes.PassResult(model, modified=packed)


def _pack(node: ir.Node, codes: int, others: tuple[int, ...]) -> None:
    """All tensors of one weight become outputs of one evaluation."""
    plain = _recipe(node, codes)
    assert isinstance(plain, Output)
    packed = PackedCodes(plain)
    for index in (codes, *others):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None:
            held = value.const_value
            assert isinstance(held, Output) and held.evaluation is plain.evaluation
            value.const_value = packed.outputs[held.index]


def _recipe(node: ir.Node, index: int) -> Recipe:
    value = node.inputs[index]
    assert value is not None and isinstance(value.const_value, Recipe)
    return value.const_value
