"""`MatMulNBits` -> `l4.cpu.Linear`: products by l4export's own CPU kernels."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from l4export.engine.cpu_weight_layout import CpuFormat
from l4export.graph.builder import GraphBuilder, own_name, remove_unused_initializers, replace_node
from l4export.graph.conditions import require_codes, require_half_scales
from l4export.graph.contents import weights_of
from l4export.graph.matching import nodes_of, producer
from l4export.quantization.cpu_operators import CPU_DOMAIN, activations, linear_attributes
from l4export.quantization.tiled_weight import TiledWeight
from l4export.weights.recipes import Recipe

__all__ = ["TileProducts"]


class TileProducts(ir.passes.InPlacePass):
    """`MatMulNBits(x, codes, scales[, zero points])` -> `Linear(x, tiles)` (`l4export.quantization.cpu_operators`).

    The same codes and scales, which must be float16, lie together in the order of the kernels. A tied head stays as it
    is: it reads the codes of the embedding, which are stored once.

    Raises:
        onnx_ir.passes.PreconditionError: no weight is quantised, or scales are not float16.
    """

    def requires(self, model: ir.Model) -> None:
        """Weights are quantised, with scales as tiles have them."""
        require_codes(model, "QuantizeWeightsForOnnxRuntime", "tiles")
        require_half_scales(model, "MatMulNBits")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every product with a weight of its own."""
        products = [node for node in nodes_of(model, "MatMulNBits", "com.microsoft") if not _is_tied(node)]
        for node in products:
            _tile(model.graph, node)
        if products:
            model.opset_imports[CPU_DOMAIN] = 1
            remove_unused_initializers(model.graph)
        return ir.passes.PassResult(model, modified=bool(products))


def _is_tied(node: ir.Node) -> bool:
    """Whether a lookup reads the same weight."""
    cast = producer(node.inputs[2], ("Cast", ""))
    scales = None if cast is None else cast.inputs[0]
    readers = [] if scales is None else [use.node for each in scales.uses() for use in each.node.outputs[0].uses()]
    return any(reader.op_type == "GatherBlockQuantized" for reader in readers)


def _tile(graph: ir.Graph, node: ir.Node) -> None:
    codes, number = node.inputs[1], node.attributes.get_int
    held = weights_of(codes)
    assert codes is not None and isinstance(codes.const_value, Recipe) and held is not None
    asymmetric = len(node.inputs) > 3 and node.inputs[3] is not None
    layout = CpuFormat(number("N"), number("K"), number("bits"), number("block_size"), asymmetric)
    b = GraphBuilder.beside(node)
    weight = TiledWeight(codes.const_value, layout)
    tiles = b.initializer(weight.tiles, f"{'|'.join(held.names)}.tiles", dataclasses.replace(held, part="tiles"))
    attributes = linear_attributes(layout, activations(number("accuracy_level", 0)))
    product = b.op("Linear", node.inputs[0], tiles, domain=CPU_DOMAIN, name=own_name(node), **attributes)
    replace_node(graph, node, b, [product])
