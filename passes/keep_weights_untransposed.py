"""`MatMul(x, W')` -> `com.microsoft.FusedMatMul(x, W, transB=1)`: weights stay in the checkpoint's order."""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.builder import GraphBuilder, own_name, replace_node
from l4export.graph.contents import note, relaid
from l4export.graph.matching import nodes_of, producer
from l4export.weights.recipes import Cast, Recipe, Transpose

__all__ = ["KeepWeightsUntransposed"]


class KeepWeightsUntransposed(ir.passes.InPlacePass):
    """Multiplies by weights as they are stored, [out, in], instead of by their transposes [in, out].

    y = x W' either way, and ONNX Runtime packs the weight for its kernel either way. Emission then copies rows in
    file order instead of gathering columns, and a tied head reads the embedding, which is stored once.
    Rewrites a MatMul whose right side is an initializer with a transposing recipe, or a `Transpose` of an initializer.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every such MatMul."""
        modified = False
        for node in nodes_of(model, "MatMul"):
            modified |= _rewrite(model.graph, node)
        if modified:
            model.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified=modified)


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    x, weight = node.inputs
    assert weight is not None
    stored = _stored(weight)
    if stored is None:
        return False
    b = GraphBuilder.beside(node)
    product = b.op("FusedMatMul", x, stored, domain="com.microsoft", name=own_name(node), transB=1)
    replace_node(graph, node, b, [product])
    transpose = weight.producer()
    if transpose is not None and not weight.uses():
        graph.remove(transpose, safe=True)
    return True


def _stored(weight: ir.Value) -> ir.Value | None:
    """The value that holds W [out, in], if `weight` is its transpose and nothing else reads it."""
    transpose = producer(weight, ("Transpose", ""))
    if transpose is not None:
        source = transpose.inputs[0]
        swaps = tuple(transpose.attributes.get_ints("perm", ())) == (1, 0)
        return source if swaps and source is not None and source.const_value is not None else None
    recipe = _untransposed(weight.const_value) if isinstance(weight.const_value, Recipe) else None
    if recipe is None or len(weight.uses()) != 1:
        return None
    recipe.name = weight.name
    weight.const_value, weight.shape = recipe, ir.Shape(recipe.dims)
    return note(weight, relaid(weight, "stored"))


def _untransposed(recipe: Recipe) -> Recipe | None:
    if isinstance(recipe, Transpose) and recipe.perm == (1, 0):
        return recipe.part
    if isinstance(recipe, Cast):
        inner = _untransposed(recipe.part)
        return None if inner is None else Cast(inner, recipe.dtype)
    return None
