"""The graph of a built engine, read as untrusted: the file as it was built, weights only within the engine's files."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from l4export.engine.file_checks import read_graph
from l4export.engine.manifest import load_manifest
from l4export.engine.manifest_types import UNPACKED, Graph, Manifest
from l4export.errors import InputError

__all__ = ["load_graph"]

_MOST_PARTS = 250_000
"""The graph of 48 layers and 128 experts has 65 thousand."""


def load_graph(engine: Path, manifest: Manifest | None = None, graph: Graph | None = None) -> ir.Model:
    """One of an engine's graphs; weights stay in their files.

    Weights that the manifest calls packed are in no file that the graph refers to;
    `l4export.runtimes.onnxruntime.portable` reads them.

    All files of the engine are compared with the manifest first, as far as a runtime does before it runs it.

    Args:
        engine: The directory.
        manifest: Its manifest; None reads it.
        graph: Which of its graphs; None is the decoder, in its portable form.

    Raises:
        InputError: a file is missing or damaged, the graph is none, or a weight lies outside the engine's files.
        StorageError: reading failed.
    """
    manifest = load_manifest(engine) if manifest is None else manifest
    graph = graph or manifest.portable
    data, path = read_graph(engine, manifest, graph), engine / graph.file
    try:
        proto = onnx.ModelProto.FromString(data)
        if not _is_of_usual_size(proto):
            raise InputError(f"{path}: a graph of more than {_MOST_PARTS} parts; build the engine again")
        if unknown := _unknown_input(proto):
            raise InputError(f"{path}: nothing in it gives {unknown!r}, which a node reads; build the engine again")
        model: ir.Model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, engine)
        misplaced = _misplaced(model, manifest)
    except InputError:
        raise
    except Exception as error:  # protobuf has exceptions of its own, and a graph can break any rule
        raise InputError(f"{path}: not a graph ({type(error).__name__}); build the engine again") from error
    if misplaced:
        raise InputError(f"{path}: {misplaced}; build the engine again")
    return model


def _is_of_usual_size(proto: onnx.ModelProto) -> bool:
    """Whether it has fewer parts than would take a gigabyte as objects: nodes, attributes, tensors, dimensions."""
    parts, left = 0, deque[Any]([proto])
    while left and parts <= _MOST_PARTS:
        for _, value in left.pop().ListFields():
            if hasattr(value, "ListFields"):
                parts += 1
                left.append(value)
            elif not isinstance(value, str | bytes | int | float):  # a list
                parts += len(value)
                if parts <= _MOST_PARTS and hasattr(value[0], "ListFields"):
                    left += value
    return parts <= _MOST_PARTS


def _unknown_input(proto: onnx.ModelProto) -> str | None:
    """The first name that a node reads and neither an input, a weight nor an earlier node of the graph has."""
    bodies = [(function.node, set(function.input)) for function in proto.functions]
    bodies.append((proto.graph.node, _given(proto.graph)))
    while bodies:
        nodes, known = bodies.pop()
        for node in nodes:
            for name in node.input:
                if name and name not in known:
                    return str(name)[:100]
            for attribute in node.attribute:
                for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                    bodies.append((graph.node, known | _given(graph)))
            known.update(node.output)
    return None


def _given(graph: onnx.GraphProto) -> set[str]:
    """Names that a graph has before its first node."""
    sparse = (tensor.values.name for tensor in graph.sparse_initializer)
    return {*(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer), *sparse}


def _misplaced(model: ir.Model, manifest: Manifest) -> str | None:
    """What is wrong with the first weight that has no type, or does not lie within one of the engine's files."""
    packed = {weight.name: weight.shape for weight in manifest.packed_weights}
    for tensor in _tensors(model):
        if tensor.dtype == ir.DataType.UNDEFINED:
            return f"weight {tensor.name!r} has no data type"
        if isinstance(tensor, ir.ExternalTensor):
            if str(tensor.location) == UNPACKED and packed.get(str(tensor.name)) == tuple(tensor.shape):
                continue
            record, offset = manifest.files.get(str(tensor.location)), tensor.offset or 0
            if record is None:
                return f"weight {tensor.name!r} lies in {str(tensor.location)[:100]!r}, which is no file of the engine"
            if tensor.length not in (None, tensor.nbytes):
                return f"weight {tensor.name!r} has {tensor.length} bytes, and its shape needs {tensor.nbytes}"
            if offset < 0 or offset + tensor.nbytes > record.bytes:
                return f"weight {tensor.name!r} goes beyond the end of {tensor.location}"
    return None


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Initializers, and tensors in attributes, of the graph and of those within it."""
    yield from _initializers(model.graph)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for attribute in node.attributes.values():
            match attribute.type:
                case ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()
                case ir.AttributeType.TENSORS:
                    yield from attribute.as_tensors()
                case ir.AttributeType.GRAPH:
                    yield from _initializers(attribute.as_graph())
                case ir.AttributeType.GRAPHS:
                    for graph in attribute.as_graphs():
                        yield from _initializers(graph)


def _initializers(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
