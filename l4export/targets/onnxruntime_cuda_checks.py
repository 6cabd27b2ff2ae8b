"""What a lowered graph must be for ONNX Runtime's CUDA provider, before any GPU has seen it.

Two kinds of graphs are refused: those with operators in a form that CUDA's kernels do not have, and those from which
something would go between the memory of the host and that of the device within a call. The second kind was wrong
without an error, is slow, and cannot be captured as a CUDA graph.
"""

from __future__ import annotations

import itertools

import onnx_ir as ir

from l4export.errors import InputError
from l4export.graph.host_memory import crossings, overridable_inputs, uncapturable_nodes

__all__ = ["EXPERT_BLOCKS", "check_cuda_graph"]

EXPERT_BLOCKS = (64, 128)
"""Block sizes that QMoE's CUDA kernels are made for, on every GPU."""


def check_cuda_graph(model: ir.Model) -> None:
    """Refuse a lowered graph that the CUDA provider would compute differently, or only with copies.

    Raises:
        InputError: attention under a chunk mask; experts in blocks of another size than QMoE takes; an input with a
            default; a value that is computed on the host and read on the device, or the other way round; an operator
            that a CUDA graph cannot hold.
    """
    for node in model.graph:
        _check_form(node)
    for name in overridable_inputs(model.graph):
        raise InputError(f"--target ort-cuda: input {name} has a default, which CUDA reads instead of what is given")
    for clause in itertools.chain(crossings(model.graph), uncapturable_nodes(model.graph)):
        raise InputError(f"--target ort-cuda cannot keep this model's call on the GPU: {clause}; use --target ort-cpu")


def _check_form(node: ir.Node) -> None:
    """The forms of attention and of experts."""
    bias = node.inputs[10] if node.op_type == "GroupQueryAttention" and len(node.inputs) > 10 else None
    if bias is not None:
        raise InputError(
            "--kv-layout static: a context beyond one chunk needs a mask that GroupQueryAttention does not take on "
            "CUDA; use --kv-layout chunked, or a shorter --max-context"
        )
    if node.op_type == "QMoE" and (block := node.attributes.get_int("block_size")) not in EXPERT_BLOCKS:
        sizes = " or ".join(map(str, EXPERT_BLOCKS))
        raise InputError(
            f"{node.name}: experts in blocks of {block}, which is not {sizes}, as QMoE wants it on CUDA; "
            "leave them float with a --policy that does not name them"
        )
