"""Quantised projections of the same input -> one product and a `Split`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import onnx_ir as ir

from l4export.engine.cpu_weight_layout import TILE_ROWS
from l4export.graph.builder import GraphBuilder, remove_unused_initializers, take_over
from l4export.graph.conditions import require_codes
from l4export.graph.contents import Weights, weights_of
from l4export.graph.matching import nodes_of
from l4export.quantization.cpu_operators import CPU_DOMAIN
from l4export.weights.evaluation import Output, Stack
from l4export.weights.recipes import Recipe

__all__ = ["PackProjections", "is_own", "kind", "pack", "rows"]


class PackProjections(ir.passes.InPlacePass):
    """Multiplies by q, k and v in one operator, and by gate and up.

    [x W1', x W2', ...] = x [W1; W2; ...]': rows of codes, scales and zero points one below the other, the product cut
    by `Split`. Every operator quantises its activations and gathers its threads anew, which in decoding costs as much
    as reading half a megabyte of weights.

    Packs `MatMulNBits`, or `l4.cpu.Linear` of whole tiles, that agree in x and all attributes but N, of weights that
    nothing else reads. The packed initializers hold several weights, and their names join the weights' names by `|`.

    Raises:
        onnx_ir.passes.PreconditionError: no weight is quantised.
    """

    def requires(self, model: ir.Model) -> None:
        """There are products with quantised weights, unless all of these are FP8."""
        require_codes(model, "QuantizeWeightsForOnnxRuntime", "tiles")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Pack every group of two or more."""
        groups: dict[Hashable, list[ir.Node]] = {}
        tiled = [node for node in nodes_of(model, "Linear", CPU_DOMAIN) if rows(node) % TILE_ROWS == 0]
        for node in (*nodes_of(model, "MatMulNBits", "com.microsoft"), *tiled):
            if is_own(node):
                groups.setdefault(kind(node), []).append(node)
        packed = [nodes for nodes in groups.values() if len(nodes) > 1]
        for nodes in packed:
            pack(model.graph, nodes)
        if packed:
            remove_unused_initializers(model.graph)
        return ir.passes.PassResult(model, modified=bool(packed))


def is_own(node: ir.Node) -> bool:
    """Whether a product's weights are recipes that nothing else reads."""
    return all(
        value is not None and isinstance(value.const_value, Recipe) and len(value.uses()) == 1
        for value in node.inputs[1:]
    )


def rows(node: ir.Node) -> int:
    """N of a product with a weight [N, K]."""
    return node.attributes.get_int("N") if "N" in node.attributes else _recipe(node.inputs[1]).dims[0]


def kind(node: ir.Node) -> Hashable:
    """What products must share to be packed."""
    attributes = {name: attribute.value for name, attribute in node.attributes.items() if name != "N"}
    dtypes = [value.dtype for value in node.inputs[1:] if value is not None]
    return node.op_type, node.inputs[0], tuple(sorted(attributes.items())), tuple(dtypes)


def pack(graph: ir.Graph, nodes: Sequence[ir.Node], note_rows: bool = False) -> None:
    """Put one product, of weights that lie one below the other, and a `Split` in the place of several.

    Args:
        graph: The graph.
        nodes: `MatMulNBits`, `FusedMatMul` or `Linear` over [N, K] weights, of one x, one operator and alike but for N.
        note_rows: Whether to note on the weights how many rows each has, for a graph that loses the `Split`.
    """
    first = nodes[0]
    b = GraphBuilder(scope=str(first.name).rpartition("/")[0].rpartition("/")[0])
    stack = Stack([_recipe(node.inputs[1]) for node in nodes])
    widths = [rows(node) for node in nodes]
    weights = []
    for operand in range(1, len(first.inputs)):
        values = [node.inputs[operand] for node in nodes]
        recipe, held = _recipe(values[0]), _held(values)
        index = recipe.index if isinstance(recipe, Output) else 0
        name = f"{'|'.join(held.names)}.{held.part}"
        noted = replace(held, rows=tuple(widths) if note_rows else ())
        weights.append(b.initializer(stack.output(index, recipe.dims[1:]), name, noted))
    attributes = {name: attribute.value for name, attribute in first.attributes.items()}
    if "N" in attributes:
        attributes["N"] = sum(widths)
    name = "_".join(str(node.name).split("/")[-2] for node in nodes)
    product = b.op(first.op_type, first.inputs[0], *weights, domain=first.domain, name=f"{name}/MatMul", **attributes)
    parts = b.ops(
        "Split", product, b.constant(widths, f"{name}/widths"), outputs=len(nodes), axis=-1, name=f"{name}/Split"
    )
    for value in b.initializers:
        graph.register_initializer(value)
    graph.insert_before(first, b.nodes)
    for node, part in zip(nodes, parts, strict=True):
        old = node.outputs[0]
        part.name = old.name
        take_over(part, old)
        ir.convenience.replace_all_uses_with(old, part)
        graph.remove(node, safe=True)


def _held(values: Sequence[ir.Value | None]) -> Weights:
    """What is held by values whose rows are put one below the other."""
    held = [weights for weights in map(weights_of, values) if weights is not None]
    return replace(held[0], names=tuple(name for weights in held for name in weights.names))


def _recipe(value: ir.Value | None) -> Recipe:
    assert value is not None and isinstance(value.const_value, Recipe)
    return value.const_value
