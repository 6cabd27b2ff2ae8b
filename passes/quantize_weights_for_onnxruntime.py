"""Weights in 4 or 8 bits: `MatMulNBits`, `QMoE`, `GatherBlockQuantized`, or DequantizeLinear for fp8."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from l4export.errors import InputError
from l4export.graph.builder import GraphBuilder, remove_unused_initializers, replace_node
from l4export.model.weight_names import ROUTER
from l4export.quantization.codes_source import CodesSource
from l4export.quantization.policy import Policy, Rule
from l4export.quantization.schemes import Scheme
from l4export.quantization.weights import CalibratedWeight, QuantizedWeight, in_place_of_source, source_of
from l4export.weights.recipes import Cast, as_recipe

__all__ = ["QuantizeWeightsForOnnxRuntime", "weight_name"]


class QuantizeWeightsForOnnxRuntime(ir.passes.InPlacePass):
    """Replaces float weights by codes and scales, as a policy says, and their operators by quantised ones.

    With w' = (code - zero_point) * scale by blocks along K (`l4export.quantization.schemes`):

    * `FusedMatMul(x, W [N, K], transB=1)` -> `MatMulNBits(x, codes [N, K/block, block*bits/8], scales)`
    * `MoE(x, probs, fc1, fc2)` -> `QMoE(x, probs, codes, scales, ...)`; fc1 and fc2 share a block size
    * `Gather(W [V, K], ids)` -> `GatherBlockQuantized(codes [V, K*bits/8], ids, scales)`
    * fp8, whatever the operator: `W` -> `DequantizeLinear(codes, scales)` with blocks along K

    With a `calibration` codes and scales of a layer's integer weights are those that it will find, and so are the
    values of routers.

    A weight with two readers (tied embeddings) is quantised once. `quantized` maps each weight's checkpoint name to the
    name of its scheme afterwards. Must run after `FuseExperts` and `KeepWeightsUntransposed`.

    Raises:
        InputError: a policy that contradicts itself or names no weight, a block size that does not fit, a scheme that
            an operator does not take.
    """

    def __init__(self, policy: Policy, calibration: CodesSource | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.calibration = calibration
        self.quantized: dict[str, str] = {}
        self._weights: dict[ir.Value, QuantizedWeight] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every operator whose weight a rule names."""
        for node in list(model.graph):
            match node.op_type, node.domain:
                case "FusedMatMul", "com.microsoft":
                    self._matmul(model.graph, node)
                case "MoE", "com.microsoft":
                    self._moe(model.graph, node)
                case "Gather", "":
                    self._gather(model.graph, node)
        self.policy.check_used(self.quantized)
        self._calibrate_routers(model.graph)
        remove_unused_initializers(model.graph)
        if self.quantized:
            model.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified=bool(self.quantized))

    def _matmul(self, graph: ir.Graph, node: ir.Node) -> None:
        x, weight = node.inputs
        rule = self._rule(weight)
        if rule is None or weight is None:
            return
        n, k = as_recipe(_tensor(weight)).dims
        scheme = rule.scheme(weight_name(weight), k)
        quantized = self._quantize(weight, scheme)
        if scheme.kind == "fp8":
            self._dequantize(graph, node, {1: quantized})
            return
        b = _builder(node)
        packed = quantized.codes_as(n, k // scheme.block_size, scheme.block_size * scheme.bits // 8)
        values = self._values(b, graph, weight, quantized, packed)
        y = b.op(
            "MatMulNBits",
            *(x, *values),
            domain="com.microsoft",
            name=_last(node),
            K=k,
            N=n,
            bits=scheme.bits,
            block_size=scheme.block_size,
            accuracy_level=self.policy.accuracy_level,
        )
        replace_node(graph, node, b, [y])

    def _moe(self, graph: ir.Graph, node: ir.Node) -> None:
        x, probs, fc1, _, fc2 = node.inputs[:5]
        assert fc1 is not None and fc2 is not None
        rules = [self._rule(fc1), self._rule(fc2)]
        if rules == [None, None]:
            return
        if rules[0] is None or rules[1] is None or len({_format(r) for r in rules if r}) > 1:
            raise _refuse(fc1, fc2)
        widths = [as_recipe(_tensor(value)).dims[2] for value in (fc1, fc2)]
        scheme = rules[0].scheme(weight_name(fc1), *widths)
        up, down = self._quantize(fc1, scheme), self._quantize(fc2, scheme)
        if scheme.kind == "fp8":
            self._dequantize(graph, node, {2: up, 4: down})
            return
        b = _builder(node)
        codes1, scales1, zeros1 = [*self._values(b, graph, fc1, up, up.codes), None][:3]
        codes2, scales2, zeros2 = [*self._values(b, graph, fc2, down, down.codes), None][:3]
        zeros = () if zeros1 is None else (None, None, None, zeros1, zeros2)
        kept = {name: value for name, value in node.attributes.items()}
        y = b.op(
            "QMoE",
            *(x, probs, codes1, scales1, None, codes2, scales2, None, *zeros),
            domain="com.microsoft",
            name=_last(node),
            expert_weight_bits=scheme.bits,
            block_size=scheme.block_size,
            accuracy_level=self.policy.accuracy_level,
        )
        producer = y.producer()
        assert producer is not None
        producer.attributes.update(kept)
        replace_node(graph, node, b, [y])

    def _gather(self, graph: ir.Graph, node: ir.Node) -> None:
        weight, ids = node.inputs
        rule = self._rule(weight)
        if rule is None or weight is None:
            return
        scheme = rule.scheme(weight_name(weight), as_recipe(_tensor(weight)).dims[1])
        quantized = self._quantize(weight, scheme)
        if scheme.kind == "fp8":
            self._dequantize(graph, node, {0: quantized})
            return
        b = _builder(node)
        codes, scales, *zeros = self._values(b, graph, weight, quantized, quantized.codes)
        row = b.op(
            "GatherBlockQuantized",
            *(codes, ids, scales, *zeros),
            domain="com.microsoft",
            name=_last(node),
            bits=scheme.bits,
            block_size=scheme.block_size,
            gather_axis=0,
            quantize_axis=1,
        )
        replace_node(graph, node, b, [row])

    def _calibrate_routers(self, graph: ir.Graph) -> None:
        """Routers stay float, but with weights that a calibration finds."""
        for name, value in graph.initializers.items():
            if self.calibration and name.endswith(ROUTER):
                recipe = as_recipe(_tensor(value))
                fitted = self.calibration.add_router(name, source_of(recipe).dims)
                value.const_value = Cast(in_place_of_source(recipe, fitted), recipe.dtype)

    def _dequantize(self, graph: ir.Graph, node: ir.Node, inputs: dict[int, QuantizedWeight]) -> None:
        """Put a DequantizeLinear before each of these inputs of a node; equal ones are merged by the clean-up."""
        for index, quantized in inputs.items():
            weight = node.inputs[index]
            assert weight is not None
            b = _builder(node)
            codes, scales = self._values(b, graph, weight, quantized, quantized.codes)
            block = quantized.scheme.block_size or quantized.k
            value = b.op(
                "DequantizeLinear", codes, scales, name=f"{weight.name}/DequantizeLinear", axis=-1, block_size=block
            )
            for initializer in b.initializers:
                graph.register_initializer(initializer)
            graph.insert_before(node, b.nodes)
            node.replace_input_with(index, value)

    def _rule(self, weight: ir.Value | None) -> Rule | None:
        return None if weight is None or weight.const_value is None else self.policy.rule_for(weight_name(weight))

    def _quantize(self, weight: ir.Value, scheme: Scheme) -> QuantizedWeight:
        if weight not in self._weights:
            recipe = as_recipe(_tensor(weight))
            if recipe.dtype == ir.DataType.FLOAT16:
                scheme = dataclasses.replace(scheme, scale_dtype="float16")  # the operators want one float type
            name = weight_name(weight)
            if self.calibration and self.calibration.takes(name, scheme):
                scheme = dataclasses.replace(scheme, fitted=False)  # the calibration chooses scales itself
                parts = self.calibration.add(name, source_of(recipe).dims, scheme)
                self._weights[weight] = CalibratedWeight(recipe, scheme, parts)
            else:
                self._weights[weight] = QuantizedWeight(recipe, scheme)
            self.quantized[name] = scheme.name
        return self._weights[weight]

    def _values(
        self, b: GraphBuilder, graph: ir.Graph, weight: ir.Value, quantized: QuantizedWeight, codes: ir.TensorProtocol
    ) -> list[ir.Value]:
        """Codes, scales and zero points as initializers; a second reader finds scales and zero points made."""
        parts = {"codes": codes, "scales": quantized.scales, "zero_points": quantized.zero_points}
        values = []
        for kind, tensor in parts.items():
            if tensor is None:
                continue
            name = f"{weight.name}.{kind}"
            present = graph.initializers.get(name)
            if present is not None and tuple(present.shape or ()) != tuple(tensor.shape):
                name, present = f"{name}.packed", None
            values.append(b.initializer(tensor, name) if present is None else present)
        return values


def _format(rule: Rule) -> tuple[object, ...]:
    """What the operands of one operator must share."""
    return rule.kind, rule.block_size, rule.symmetric, rule.fitted


def weight_name(value: ir.Value) -> str:
    """The checkpoint's name of a weight, which expert fusion has extended."""
    return str(value.name).removesuffix(".fc1").removesuffix(".fc2")


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _builder(node: ir.Node) -> GraphBuilder:
    return GraphBuilder(scope=str(node.name).rpartition("/")[0])


def _last(node: ir.Node) -> str:
    return str(node.name).rpartition("/")[2]


def _refuse(fc1: ir.Value, fc2: ir.Value) -> InputError:
    names = f"{weight_name(fc1)} and {weight_name(fc2)}"
    return InputError(f"the policy treats {names} differently: ONNX Runtime's QMoE takes one scheme for both")
