"""ONNX Runtime's operators over quantised weights: what each one takes, and which float operator it replaces.

With w' = (code - zero_point) * scale by blocks along K (`l4export.quantization.schemes`):

* `FusedMatMul(x, W [N, K], transB=1)` -> `MatMulNBits(x, codes [N, K/block, block*bits/8], scales)`
* `MoE(x, probs, fc1, fc2)` -> `QMoE(x, probs, codes, scales, ...)`; fc1 and fc2 share a scheme
* `Gather(W [V, K], ids)` -> `GatherBlockQuantized(codes [V, K*bits/8], ids, scales)`
* fp8, for every operator: `W` -> `DequantizeLinear(codes, scales)` with blocks along K
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from l4export.graph.builder import GraphBuilder, own_name, replace_node
from l4export.graph.contents import Part, weights_of
from l4export.quantization.weights import CodedWeight

__all__ = ["OPERATORS", "Operand", "Operator", "dequantize_operands", "replace_operator"]


@dataclass(frozen=True)
class Operand:
    """A quantised weight, and the initializer of the float weight that it replaces."""

    weight: ir.Value
    quantized: CodedWeight

    def values(self, b: GraphBuilder, graph: ir.Graph, codes: ir.TensorProtocol | None = None) -> list[ir.Value]:
        """Return codes (in the shape of `codes`, if given), scales and zero points (if there are any) as initializers.

        If the weight has a second reader, it gets the initializers of the first. If it reads the codes in another
        shape, they become another initializer over the same bytes. Scales of another float type than the weight's are
        cast to it, as the operators want one type.
        """
        tensors: dict[Part, ir.TensorProtocol | None] = {
            "codes": codes or self.quantized.codes,
            "scales": self.quantized.scales,
            "zero_points": self.quantized.zero_points,
        }
        codes_and_more = [self._value(b, graph, part, tensor) for part, tensor in tensors.items() if tensor is not None]
        if self.quantized.scales.dtype != (dtype := self.weight.dtype) and dtype is not None:
            name = f"{self.weight.name}.scales/Cast"
            codes_and_more[1] = b.op("Cast", codes_and_more[1], name=name, to=int(dtype))
        return codes_and_more

    def _value(self, b: GraphBuilder, graph: ir.Graph, part: Part, tensor: ir.TensorProtocol) -> ir.Value:
        name = f"{self.weight.name}.{part}"
        present = graph.initializers.get(name)
        if present is not None and tuple(present.shape or ()) == tuple(tensor.shape):
            return present
        held = weights_of(self.weight)
        assert held is not None
        return b.initializer(
            tensor, name if present is None else f"{name}.packed", dataclasses.replace(held, part=part)
        )


@dataclass(frozen=True)
class Operator:
    """A float operator that has a quantised form.

    `weights` has the indices of the inputs that are weights. `quantized(b, graph, node, operands, accuracy_level)`
    builds the quantised form and returns its output.
    """

    weights: tuple[int, ...]
    quantized: Callable[[GraphBuilder, ir.Graph, ir.Node, Sequence[Operand], int], ir.Value]


def replace_operator(
    graph: ir.Graph, node: ir.Node, operator: Operator, operands: Sequence[Operand], accuracy_level: int
) -> None:
    """Replace a node by its quantised form."""
    b = GraphBuilder.beside(node)
    replace_node(graph, node, b, [operator.quantized(b, graph, node, operands, accuracy_level)])


def dequantize_operands(graph: ir.Graph, node: ir.Node, operator: Operator, operands: Sequence[Operand]) -> None:
    """Put a `DequantizeLinear` before each weight of a node. The clean-up merges equal ones."""
    b = GraphBuilder.beside(node)
    for index, operand in zip(operator.weights, operands, strict=True):
        codes, scales = operand.values(b, graph)
        block = operand.quantized.scheme.block_size or operand.quantized.k
        name = f"{operand.weight.name}/DequantizeLinear"
        node.replace_input_with(index, b.op("DequantizeLinear", codes, scales, name=name, axis=-1, block_size=block))
    for initializer in b.initializers:
        graph.register_initializer(initializer)
    graph.insert_before(node, b.nodes)


def _matmul_nbits(
    b: GraphBuilder, graph: ir.Graph, node: ir.Node, operands: Sequence[Operand], accuracy_level: int
) -> ir.Value:
    (operand,) = operands
    scheme, (n, _), k = operand.quantized.scheme, operand.quantized.codes.dims, operand.quantized.k
    blocks = operand.quantized.codes_as(n, k // scheme.block_size, scheme.block_size * scheme.bits // 8)
    return b.op(
        "MatMulNBits",
        *(node.inputs[0], *operand.values(b, graph, blocks)),
        domain="com.microsoft",
        name=own_name(node),
        K=k,
        N=n,
        bits=scheme.bits,
        block_size=scheme.block_size,
        accuracy_level=accuracy_level,
    )


def _qmoe(
    b: GraphBuilder, graph: ir.Graph, node: ir.Node, operands: Sequence[Operand], accuracy_level: int
) -> ir.Value:
    x, probs = node.inputs[:2]
    (codes1, scales1, *zeros1), (codes2, scales2, *zeros2) = (operand.values(b, graph) for operand in operands)
    zeros = (None, None, None, *zeros1, *zeros2) if zeros1 else ()
    scheme = operands[0].quantized.scheme
    return b.op(
        "QMoE",
        *(x, probs, codes1, scales1, None, codes2, scales2, None, *zeros),
        domain="com.microsoft",
        name=own_name(node),
        expert_weight_bits=scheme.bits,
        block_size=scheme.block_size,
        accuracy_level=accuracy_level,
        **{name: attribute.value for name, attribute in node.attributes.items()},
    )


def _gather_block_quantized(
    b: GraphBuilder, graph: ir.Graph, node: ir.Node, operands: Sequence[Operand], _: int
) -> ir.Value:
    (operand,) = operands
    codes, scales, *zeros = operand.values(b, graph)
    return b.op(
        "GatherBlockQuantized",
        *(codes, node.inputs[1], scales, *zeros),
        domain="com.microsoft",
        name=own_name(node),
        bits=operand.quantized.scheme.bits,
        block_size=operand.quantized.scheme.block_size,
        gather_axis=0,
        quantize_axis=1,
    )


OPERATORS = {
    ("FusedMatMul", "com.microsoft"): Operator((1,), _matmul_nbits),
    ("MoE", "com.microsoft"): Operator((2, 4), _qmoe),
    ("Gather", ""): Operator((0,), _gather_block_quantized),
}
"""The float operators that have a quantised form in ONNX Runtime, by type and domain."""
