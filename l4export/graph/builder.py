"""A small builder for `onnx_ir` graphs with hierarchical names, and the edits that several passes share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from l4export.graph.contents import Weights, note

__all__ = ["GraphBuilder", "extract_part", "own_name", "remove_unused_initializers", "replace_node", "take_over"]


class GraphBuilder:
    """Collects nodes and initializers under a current scope such as `/layers.0/attn`.

    A node called `name` in that scope is named `/layers.0/attn/name`, and so is its first output; further outputs
    carry `:1`, `:2`. A name that is taken gets `_1`, `_2`, ...
    """

    def __init__(self, scope: str = "", taken: set[str] | None = None) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self._scope = scope
        self._taken = set() if taken is None else taken

    @classmethod
    def beside(cls, node: ir.Node) -> GraphBuilder:
        """A builder in the scope of a node, for nodes that replace it or stand next to it."""
        return cls(scope=str(node.name).rpartition("/")[0])

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Give everything that is built inside a name below `name`."""
        outer = self._scope
        self._scope = f"{outer}/{name}"
        try:
            yield
        finally:
            self._scope = outer

    def op(
        self, op_type: str, *inputs: ir.Value | None, name: str | None = None, domain: str = "", **attributes: Any
    ) -> ir.Value:
        """Add a node with one output and return that output."""
        return self.ops(op_type, *inputs, outputs=1, name=name, domain=domain, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: int,
        name: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs and return them."""
        path = self._unique(f"{self._scope}/{name or op_type}")
        values = [ir.Value(name=path if i == 0 else f"{path}:{i}") for i in range(outputs)]
        node = ir.Node(
            domain,
            op_type,
            inputs,
            attributes=ir.convenience.convert_attributes(attributes),
            outputs=values,
            name=path,
        )
        self.nodes.append(node)
        return node.outputs

    def initializer(self, tensor: ir.TensorProtocol, name: str, holds: Weights | None = None) -> ir.Value:
        """Add a weight under exactly this name (not scoped: weights keep their checkpoint names).

        `holds` says which weights of the checkpoint the tensor is made of; None for one that is made of none.
        """
        tensor.name = name
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
        )
        self.initializers.append(value)
        return note(value, holds)

    def constant(self, array: np.ndarray | Sequence[int] | int, name: str) -> ir.Value:
        """Add a small constant below the current scope; Python integers become int64."""
        data = array if isinstance(array, np.ndarray) else np.asarray(array, dtype=np.int64)
        return self.initializer(ir.tensor(data), self._unique(f"{self._scope}/{name}"))

    def _unique(self, path: str) -> str:
        candidate, i = path, 0
        while candidate in self._taken:
            i += 1
            candidate = f"{path}_{i}"
        self._taken.add(candidate)
        return candidate


def extract_part(graph: ir.Graph, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Graph:
    """The part of a graph that makes `outputs` of `inputs`, as a graph of its own; constants are shared, not copied.

    Initializers come in the order of the whole, whatever the order in which the part reads them.
    """
    part = ir.convenience.extract(graph, inputs, outputs)
    order = {name: index for index, name in enumerate(graph.initializers)}
    for name in sorted(part.initializers, key=order.__getitem__):  # the library's order differs from run to run
        part.initializers[name] = part.initializers.pop(name)
    return part


def own_name(node: ir.Node) -> str:
    """A node's name within its scope."""
    return str(node.name).rpartition("/")[2]


def take_over(new: ir.Value, old: ir.Value) -> None:
    """Give a new value the type, the shape and the notes of an old one."""
    new.type, new.shape = old.type, old.shape
    new.metadata_props.update(old.metadata_props)


def replace_node(graph: ir.Graph, node: ir.Node, builder: GraphBuilder, outputs: Sequence[ir.Value]) -> None:
    """Put the builder's nodes in the place of `node`; `outputs` take over its outputs, names included."""
    for value in builder.initializers:
        graph.register_initializer(value)
    for old, new in zip(node.outputs, outputs, strict=True):
        take_over(new, old)
    ir.convenience.replace_nodes_and_values(graph, node, [node], builder.nodes, node.outputs, outputs)


def remove_unused_initializers(graph: ir.Graph) -> int:
    """Remove initializers that nothing reads, except inputs that carry a default; returns how many."""
    unused = [
        name
        for name, value in graph.initializers.items()
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input()
    ]
    for name in unused:
        del graph.initializers[name]
    return len(unused)
