"""Weights in 4 or 8 bits in standard ONNX: `DequantizeLinear` of a constant, whatever reads it."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir

from l4export.errors import InputError
from l4export.graph.builder import GraphBuilder, remove_unused_initializers
from l4export.graph.conditions import require_none
from l4export.graph.contents import Weights, weights_of
from l4export.graph.dialect import DOMAIN
from l4export.quantization.kept_codes import kept_weight
from l4export.quantization.policy import Policy, Rule
from l4export.quantization.schemes import ScaleDtype
from l4export.quantization.weights import QuantizedWeight
from l4export.weights.recipes import as_recipe, swapped

__all__ = ["QuantizeWeightsInONNX"]

_SCALES: dict[ir.DataType, ScaleDtype] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}


class QuantizeWeightsInONNX(ir.passes.InPlacePass):
    """Replaces float weights by `DequantizeLinear(codes, scales)`, as a policy says; their readers stay.

    w' = code * scale in blocks along the contraction, codes INT4, INT8 or FLOAT8E4M3FN around zero, scales above zero
    and of the weight's own dtype (`positive` schemes of `l4export.quantization.schemes`). Codes lie as the kernels
    write them, contraction last: [N, K], [E, N, K]. A right operand of `MatMul`, [.., K, N], is their transpose; a
    table that `Gather` reads, [V, K], is as they lie. A matrix with one block a row has a scale per channel, [N].
    The whole weight is dequantised and only then gathered from: TensorRT takes codes nowhere else.

    `quantized` maps each weight's name to the name of its scheme afterwards.

    Raises:
        InputError: a policy that contradicts itself, names no weight or asks for zero points; a block size that does
            not fit.
        onnx_ir.passes.PreconditionError: an `l4.MoE` is left; which axis its weights are contracted along, only their
            `MatMul` tells.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self.quantized: dict[str, str] = {}

    def requires(self, model: ir.Model) -> None:
        """Standard operators read the weights."""
        require_none(model, "MoE", DOMAIN, "run LowerExperts first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every matrix that a rule names."""
        for value in list(model.graph.initializers.values()):
            held = weights_of(value)
            if held is None or held.part != "values" or value.shape is None or len(value.shape) < 2:
                continue
            rule = self.policy.rule_for(held.names[0])
            if rule is not None:
                self._rewrite(model.graph, value, held, rule)
        self.policy.check_used(self.quantized)
        remove_unused_initializers(model.graph)
        return ir.passes.PassResult(model, modified=bool(self.quantized))

    def _rewrite(self, graph: ir.Graph, weight: ir.Value, held: Weights, rule: Rule) -> None:
        (name,), tensor = held.names, weight.const_value
        assert tensor is not None
        recipe = as_recipe(tensor)
        transposed = any(use.node.op_type == "MatMul" and use.idx == 1 for use in weight.uses())
        if transposed:
            recipe, held = swapped(recipe), held.swapped()
        if not rule.symmetric:
            raise InputError(f"{name}: standard ONNX engines have no zero points; leave `symmetric = false` out")
        plain = rule.scheme(name, recipe.dims[-1])
        scheme = dataclasses.replace(plain, scale_dtype=_SCALES[recipe.dtype], positive=True)
        quantized = kept_weight(recipe, scheme) if rule.as_stored else QuantizedWeight(recipe, scheme)
        b = GraphBuilder()
        last, scales = len(recipe.dims) - 1, quantized.scales
        cut: dict[str, Any] = {"axis": last, "block_size": scheme.block_size or recipe.dims[-1]}
        if last == 1 and scales.dims[-1] == 1:
            scales, cut = quantized.scales_as(recipe.dims[0]), {"axis": 0}
        codes = b.initializer(quantized.codes, f"{name}.codes", dataclasses.replace(held, part="codes"))
        scale = b.initializer(scales, f"{name}.scales", dataclasses.replace(held, part="scales"))
        value = b.op("DequantizeLinear", codes, scale, name=f"{name}/DequantizeLinear", **cut)
        if transposed:
            value = b.op("Transpose", value, name=f"{name}/Transpose", perm=[*range(last - 1), last, last - 1])
        value.type, value.shape = weight.type, weight.shape
        weight.replace_all_uses_with(value)
        for part in b.initializers:
            graph.register_initializer(part)
        graph.insert_before(graph[0], b.nodes)
        self.quantized[name] = scheme.name
