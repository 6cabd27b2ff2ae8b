"""Weights in 4 or 8 bits: `MatMulNBits`, `QMoE`, `GatherBlockQuantized`, or DequantizeLinear for fp8."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from l4export.errors import InputError
from l4export.graph.builder import remove_unused_initializers
from l4export.graph.conditions import require_none
from l4export.graph.contents import weights_of
from l4export.graph.dialect import DOMAIN
from l4export.graph.matching import nodes_of, producer
from l4export.model.weight_names import kind_of
from l4export.quantization.codes_source import CodesSource
from l4export.quantization.kept_codes import kept_weight
from l4export.quantization.onnxruntime_operators import (
    OPERATORS,
    Operand,
    Operator,
    dequantize_operands,
    replace_operator,
)
from l4export.quantization.policy import Policy, Rule
from l4export.quantization.schemes import ScaleDtype, Scheme
from l4export.quantization.weights import CodedWeight, GivenWeight, QuantizedWeight, in_place_of_source, source_of
from l4export.weights.recipes import Cast, Recipe, as_recipe

__all__ = ["QuantizeWeightsForOnnxRuntime"]


class QuantizeWeightsForOnnxRuntime(ir.passes.InPlacePass):
    """Replaces float weights by codes and scales, as a policy says, and their operators by quantised ones.

    The operators, and the formula of a weight, are those of `l4export.quantization.onnxruntime_operators`. All weights
    of one operator must have one scheme.

    With a `calibration` codes and scales of a layer's integer weights are those that it will find, and so are the
    values of routers. Scales of integer weights are of `scale_dtype`, or of the weight's own type where that is
    narrower.

    A weight with two readers (tied embeddings) is quantised once. `quantized` maps each weight's checkpoint name to the
    name of its scheme afterwards.

    Raises:
        InputError: a policy that contradicts itself or names no weight, a block size that does not fit, a scheme that
            an operator does not take.
        onnx_ir.passes.PreconditionError: experts are not fused, or a product reads the transpose of a weight.
    """

    def __init__(
        self, policy: Policy, calibration: CodesSource | None = None, scale_dtype: ScaleDtype = "float32"
    ) -> None:
        super().__init__()
        self.policy = policy
        self.calibration = calibration
        self.scale_dtype = scale_dtype
        self.quantized: dict[str, str] = {}
        self._weights: dict[ir.Value, CodedWeight] = {}

    def requires(self, model: ir.Model) -> None:
        """Weights are read by operators that have a quantised form."""
        require_none(model, "MoE", DOMAIN, "run FuseExperts first")
        for node in nodes_of(model, "MatMul"):
            transpose = producer(node.inputs[1], ("Transpose", ""))
            if weights_of(transpose.inputs[0] if transpose else node.inputs[1]) is not None:
                raise ir.passes.PreconditionError(f"{node.name}: run KeepWeightsUntransposed first")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every operator whose weight a rule names."""
        for node in list(model.graph):
            operator = OPERATORS.get((node.op_type, node.domain))
            if operator is not None:
                self._rewrite(model.graph, node, operator)
        self.policy.check_used(self.quantized)
        self._calibrate_routers(model.graph)
        remove_unused_initializers(model.graph)
        if self.quantized:
            model.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified=bool(self.quantized))

    def _rewrite(self, graph: ir.Graph, node: ir.Node, operator: Operator) -> None:
        weights = [value for index in operator.weights if (value := node.inputs[index]) is not None]
        names = [held.names[0] for held in map(weights_of, weights) if held is not None]
        if len(names) < len(operator.weights):
            return  # it reads no weight
        rules = [self.policy.rule_for(name) for name in names]
        chosen = next(filter(None, rules), None)
        if chosen is None:
            return
        if len({rule and _format(rule) for rule in rules}) > 1:
            raise InputError(
                f"the policy treats {' and '.join(names)} differently: ONNX Runtime's QMoE takes one scheme for both"
            )
        scheme = chosen.scheme(names[0], *(_recipe(value).dims[-1] for value in weights))
        operands = [
            Operand(value, self._coded(value, name, scheme, rule is not None and rule.as_stored))
            for value, name, rule in zip(weights, names, rules, strict=True)
        ]
        if scheme.kind == "fp8":
            dequantize_operands(graph, node, operator, operands)
        else:
            replace_operator(graph, node, operator, operands, self.policy.accuracy_level)

    def _coded(self, weight: ir.Value, name: str, scheme: Scheme, as_stored: bool) -> CodedWeight:
        """The codes of a weight, made once."""
        if weight not in self._weights:
            recipe = _recipe(weight)
            if recipe.dtype == ir.DataType.FLOAT16:
                scheme = dataclasses.replace(scheme, scale_dtype="float16")  # the operators want one float type
            elif scheme.kind != "fp8":
                scheme = dataclasses.replace(scheme, scale_dtype=self.scale_dtype)
            if as_stored:
                self._weights[weight] = kept_weight(recipe, scheme)
            elif self.calibration and self.calibration.takes(name, scheme):
                scheme = dataclasses.replace(scheme, fitted=False)  # the calibration chooses scales itself
                parts = self.calibration.add(name, source_of(recipe).dims, scheme)
                self._weights[weight] = GivenWeight(recipe, scheme, parts)
            else:
                self._weights[weight] = QuantizedWeight(recipe, scheme)
            self.quantized[name] = scheme.name
        return self._weights[weight]

    def _calibrate_routers(self, graph: ir.Graph) -> None:
        """Routers stay float, but with weights that a calibration finds."""
        for value in graph.initializers.values():
            held = weights_of(value)
            if self.calibration and held is not None and held.part == "values" and kind_of(held.names[0]) == "router":
                recipe = _recipe(value)
                fitted = self.calibration.add_router(held.names[0], source_of(recipe).dims)
                value.const_value = Cast(in_place_of_source(recipe, fitted), recipe.dtype)


def _recipe(value: ir.Value) -> Recipe:
    assert value.const_value is not None
    return as_recipe(value.const_value)


def _format(rule: Rule) -> tuple[object, ...]:
    """What the operands of one operator must share."""
    return rule.kind, rule.block_size, rule.symmetric, rule.fitted
