"""Activations in 8-bit floats: what is multiplied by an FP8 weight is rounded to FP8 itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from l4export.graph.builder import GraphBuilder
from l4export.graph.conditions import require_codes
from l4export.graph.contents import weights_of
from l4export.graph.matching import producer

__all__ = ["Product", "QuantizeActivations", "fp8_products"]


class QuantizeActivations(ir.passes.InPlacePass):
    """Puts `DequantizeLinear(QuantizeLinear(x, s), s)` in the place of x wherever x is multiplied by an FP8 weight.

        x' = s * E4M3FN(clip(x / s, -448, 448)),  s one number for each weight, rounding to nearest even

    in the activations' own dtype. Products that read one x share one pair, hence must have one scale. The router and
    whatever else reads x keep it as it is. A builder such as TensorRT's multiplies the codes themselves. Every scale is
    one until `SetActivationScales` sets those that were measured.

    Raises:
        onnx_ir.passes.PreconditionError: no weight is quantised.
    """

    def requires(self, model: ir.Model) -> None:
        """Weights have codes."""
        require_codes(model, "QuantizeWeightsInONNX")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Round the left operand of every product with an FP8 weight."""
        rounded: dict[tuple[ir.Value, ir.Graph], ir.Value] = {}
        products = [p for p in fp8_products(model.graph) if producer(p.x, ("DequantizeLinear", "")) is None]
        for product in products:
            key = product.x, product.graph
            if key not in rounded:
                rounded[key] = _round(model.graph, product)
            product.node.replace_input_with(0, rounded[key])
        return ir.passes.PassResult(model, modified=bool(products))


def _round(outer: ir.Graph, product: Product) -> ir.Value:
    b = GraphBuilder(scope=str(product.node.name))
    s = b.constant(np.asarray(1.0, product.dtype.numpy()), "input_scale")
    codes = b.op("QuantizeLinear", product.x, s, name="input_codes", output_dtype=int(ir.DataType.FLOAT8E4M3FN))
    x = b.op("DequantizeLinear", codes, s, name="rounded_input")
    outer.register_initializer(s)
    product.graph.insert_before(product.node, b.nodes)
    return x


@dataclass(frozen=True)
class Product:
    """A product with an FP8 weight: its node, the graph or branch that this is in, and where the weight comes from."""

    node: ir.Node
    graph: ir.Graph
    dequantized: ir.Node

    @property
    def weight(self) -> str:
        """The weight's name as it is in the checkpoint."""
        held = weights_of(self.dequantized.inputs[0])
        assert held is not None
        return held.names[0]

    @property
    def dtype(self) -> ir.DataType:
        """What is computed in."""
        scales = self.dequantized.inputs[1]
        assert scales is not None and scales.dtype is not None
        return scales.dtype

    @property
    def x(self) -> ir.Value:
        """What the weight is multiplied by."""
        value = self.node.inputs[0]
        assert value is not None
        return value


def fp8_products(graph: ir.Graph) -> Iterator[Product]:
    """Every product with an FP8 weight, in the graph and in the branches of its nodes."""
    for node in graph.all_nodes():
        dequantized = _dequantized_fp8(node.inputs[1]) if node.op_type == "MatMul" else None
        if dequantized is not None:
            assert isinstance(node.graph, ir.Graph)
            yield Product(node, node.graph, dequantized)


def _dequantized_fp8(value: ir.Value | None) -> ir.Node | None:
    """What dequantised the FP8 weight that a value is, or that it was transposed or gathered from."""
    if (moved := producer(value, ("Gather", ""), ("Transpose", ""))) is not None:
        return _dequantized_fp8(moved.inputs[0])
    node = producer(value, ("DequantizeLinear", ""))
    if node is None or weights_of(codes := node.inputs[0]) is None:
        return None
    return node if codes is not None and codes.dtype == ir.DataType.FLOAT8E4M3FN else None
