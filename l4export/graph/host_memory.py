"""What of a graph is computed and read in the host's memory, when ONNX Runtime's CUDA provider executes it.

Some inputs of CUDA kernels lie in the host's memory, because they decide shapes or the form of a launch. `Shape` gives
its result there too, and ONNX Runtime leaves to the CPU what is computed from such results alone
(`GetCpuPreferredNodes`, onnxruntime/core/framework/fallback_cpu_capability.cc, 1.31): a node whose inputs are small
constants, inputs of the graph, and at least one value on the host that its kernel does not read there anyway.

Whatever crosses from one side to the other is copied in every call, which waits for the device and rules out CUDA
graphs; and attention whose `total_sequence_length` came from the device was wrong without an error (ONNX Runtime
1.31.1). So nothing may cross:

* what is read on the host comes from shapes, constants or inputs of the graph;
* what is computed on the host is read on the host;
* an input of the graph is read on one side.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["crossings", "host_values", "is_read_on_host", "overridable_inputs", "uncapturable_nodes"]

_HOST_INPUTS: dict[tuple[str, str], tuple[int, ...]] = {
    ("ConstantOfShape", ""): (0,),
    ("CumSum", ""): (1,),
    ("Expand", ""): (1,),
    ("OneHot", ""): (1, 2),
    ("Pad", ""): (1, 2, 3),
    ("Range", ""): (0, 1, 2),
    ("ReduceL2", ""): (1,),
    ("ReduceMax", ""): (1,),
    ("ReduceMean", ""): (1,),
    ("ReduceMin", ""): (1,),
    ("ReduceProd", ""): (1,),
    ("ReduceSum", ""): (1,),
    ("Reshape", ""): (1,),
    ("Resize", ""): (1, 2, 3),
    ("Slice", ""): (1, 2, 3, 4),
    ("Split", ""): (1,),
    ("Squeeze", ""): (1,),
    ("Tile", ""): (1,),
    ("TopK", ""): (1,),
    ("Trilu", ""): (1,),
    ("Unsqueeze", ""): (1,),
    ("GroupQueryAttention", "com.microsoft"): (6,),
}
"""Inputs that a kernel has in the host's memory: `InputMemoryType(OrtMemTypeCPUInput, i)` where ONNX Runtime registers
its CUDA kernels (onnxruntime/core/providers/cuda and onnxruntime/contrib_ops/cuda)."""

_SHAPES = frozenset({("Shape", ""), ("Size", "")})
"""Operators that read no element, and give their result on the host."""

_UNCAPTURABLE = {
    ("Compress", ""): "its output's shape depends on values",
    ("GatherND", ""): "its kernel copies from memory of the host that is gone when a capture is replayed",
    ("If", ""): "a branch cannot be captured",
    ("Loop", ""): "a loop cannot be captured",
    ("NonMaxSuppression", ""): "its output's shape depends on values",
    ("NonZero", ""): "its output's shape depends on values",
    ("Scan", ""): "a loop cannot be captured",
    ("Unique", ""): "its output's shape depends on values",
}
"""Operators that a CUDA graph cannot hold, and why. Of GatherND: onnxruntime/core/providers/cuda/tensor/gather_nd.cc
copies a vector of the call by cudaMemcpyAsync."""

_SMALL_FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
"""ONNX Runtime moves no node with such an input to the CPU."""


def is_read_on_host(node: ir.Node, index: int) -> bool:
    """Whether the CUDA kernel of a node has this input in the host's memory."""
    return index in _HOST_INPUTS.get((node.op_type, node.domain), ())


def host_values(graph: ir.Graph) -> set[ir.Value]:
    """The values that are computed on the host: shapes, and what follows from them."""
    found: set[ir.Value] = set()
    constant = _constants(graph)
    for node in graph:
        if (node.op_type, node.domain) in _SHAPES or _runs_on_host(node, found, constant):
            found.update(node.outputs)
    return found


def crossings(graph: ir.Graph) -> Iterator[str]:
    """What goes from device to host or back within a call, each as a clause that names node and value."""
    host, constant = host_values(graph), _constants(graph)
    sides: dict[ir.Value, set[bool]] = {}
    for node in graph:
        if (node.op_type, node.domain) in _SHAPES or constant.issuperset(node.outputs):
            continue
        runs_on_host = host.issuperset(node.outputs)
        for index, value in enumerate(node.inputs):
            if value is None or value in constant:
                continue
            on_host = runs_on_host or is_read_on_host(node, index)
            if value.is_graph_input():
                sides.setdefault(value, set()).add(on_host)
            elif on_host and value not in host:
                yield f"{node.name} reads {value.name} on the host, and it is computed on the device"
            elif not on_host and value in host:
                yield f"{node.name} reads {value.name} on the device, and it is computed on the host"
    for value, read in sides.items():
        if len(read) > 1:
            yield f"{value.name} is read both on the host and on the device"


def overridable_inputs(graph: ir.Graph) -> list[str]:
    """Inputs with a default. On CUDA what a caller gives in its place is not read."""
    return [str(value.name) for value in graph.inputs if value.name in graph.initializers]


def uncapturable_nodes(graph: ir.Graph) -> Iterator[str]:
    """Nodes that a CUDA graph cannot hold, each as a clause that names it and says why."""
    for node in graph:
        if (why := _UNCAPTURABLE.get((node.op_type, node.domain))) is not None:
            yield f"{node.name} is a {node.op_type}: {why}"


def _runs_on_host(node: ir.Node, host: set[ir.Value], constant: set[ir.Value]) -> bool:
    """Whether ONNX Runtime leaves a node to the CPU."""
    is_after_host = False
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if value.dtype in _SMALL_FLOATS:
            return False
        if value in constant or value.is_graph_input():
            continue
        if value not in host or is_read_on_host(node, index):
            return False
        is_after_host = True
    return is_after_host


def _constants(graph: ir.Graph) -> set[ir.Value]:
    """Weights, constants and what is computed from constants alone, which ONNX Runtime computes once."""
    found = {value for name, value in graph.initializers.items() if not value.is_graph_input()}
    for node in graph:
        if all(value is None or value in found for value in node.inputs):
            found.update(node.outputs)
    return found
