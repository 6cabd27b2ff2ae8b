"""The graph of a built engine, read as untrusted: the file as it was built, weights only within the engine's files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from l4export.engine.file_checks import check_files, read_file
from l4export.engine.manifest import load_manifest
from l4export.engine.manifest_types import Manifest
from l4export.errors import InputError

__all__ = ["load_graph"]


def load_graph(engine: Path, manifest: Manifest | None = None) -> ir.Model:
    """An engine's graph; weights stay in their files.

    All files of the engine are compared with the manifest first, as far as a runtime does before it runs it.

    Args:
        engine: The directory.
        manifest: Its manifest; None reads it.

    Raises:
        InputError: a file is missing or damaged, the graph is none, or a weight lies outside the engine's files.
        StorageError: reading failed.
    """
    manifest = load_manifest(engine) if manifest is None else manifest
    check_files(engine, manifest)
    name = manifest.decoder.file
    data = read_file(engine, manifest, name)
    try:
        model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(data))
        ir.external_data.set_base_dir(model.graph, engine)
        misplaced = _misplaced(model, manifest)
    except Exception as error:  # protobuf has exceptions of its own, and a graph can break any rule
        raise InputError(f"{engine / name}: not a graph ({type(error).__name__}); build the engine again") from error
    if misplaced:
        raise InputError(f"{engine / name}: {misplaced}; build the engine again")
    return model


def _misplaced(model: ir.Model, manifest: Manifest) -> str | None:
    """What is wrong with the place of the first weight that does not lie within one of the engine's files."""
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
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
