"""What the graphs of a model share: weights by their checkpoint names, linear layers, inputs and outputs with types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from l4export.graph.builder import GraphBuilder
from l4export.graph.contents import Weights
from l4export.graph.dialect import DOMAIN, OPSET_VERSION, dialect_functions
from l4export.weights.recipes import Cast, Recipe, Transpose

__all__ = ["IR_VERSION", "WeightSource", "WeightedGraph", "graph_input", "typed"]

IR_VERSION = 11

WeightSource = Callable[[str, tuple[int, ...]], Recipe]
"""Gives the recipe of a checkpoint tensor from its name (without prefix) and the shape it must have."""


class WeightedGraph:
    """A graph in the making that computes in `dtype`; `shapes` are those of the weights that it may ask for."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], weights: WeightSource, dtype: ir.DataType) -> None:
        self.shapes = shapes
        self.weights = weights
        self.dtype = dtype
        self.b = GraphBuilder()

    def linear(self, x: ir.Value, weight: str, name: str) -> ir.Value:
        """x W' for a weight stored [out, in]; the graph's initializer is its transpose [in, out]."""
        recipe = Transpose(self.weights(weight, self.shapes[weight]), (1, 0))
        holds = Weights((weight,), "transposed")
        return self.b.op("MatMul", x, self.initializer(recipe, holds), name=f"{name}/MatMul")

    def weight(self, name: str) -> ir.Value:
        """A weight as it is stored."""
        return self.initializer(self.weights(name, self.shapes[name]), Weights((name,)))

    def initializer(self, recipe: Recipe, holds: Weights) -> ir.Value:
        """A weight under its checkpoint name, in the dtype of the graph."""
        cast = recipe if recipe.dtype == self.dtype else Cast(recipe, self.dtype)
        return self.b.initializer(cast, holds.names[0], holds)

    def model(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], name: str) -> ir.Model:
        """The finished graph, with the functions of the dialect."""
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self.b.nodes,
            initializers=self.b.initializers,
            opset_imports={"": OPSET_VERSION, DOMAIN: 1},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, functions=dialect_functions())


def graph_input(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    """An input of a graph."""
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def typed(value: ir.Value, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    """The value, with a dtype and a shape."""
    value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
    return value
