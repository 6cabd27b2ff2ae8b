"""`--target ort-cuda`: ONNX Runtime's fused operators in the forms of its CUDA provider.

What CUDA may compute differently from the CPU provider is refused. The rules follow ONNX Runtime's tables of kernels
and its notes on MoE and QMoE (1.31). None of this has been executed on a GPU here.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from l4export.engine.manifest import Runtime
from l4export.errors import InputError
from l4export.targets.lowering import fused_operators, fused_vision
from l4export.targets.target import CACHES_IN_PLACE, GraphOptions, Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from l4export.quantization.policy import Policy

__all__ = ["ORT_CUDA"]

_EXPERT_BLOCKS = (64, 128)
"""Block sizes that QMoE's CUDA kernels are made for, on every GPU."""


def _operators(options: GraphOptions) -> list[ir.passes.InPlacePass]:
    """The fused operators, in the forms that the CUDA provider has.

    Its kernels leave activations as they are, so a CPU that executes the graph in their place is told to do the same.
    """
    from l4export import passes

    exact = options.policy and dataclasses.replace(options.policy, accuracy_level=1)
    return [
        *fused_operators(dataclasses.replace(options, policy=exact)),
        # expert weights in the order of every provider
        passes.MarkRawExpertWeights(),
        # bad input is refused by the runtime, not by the graph
        passes.LeaveChecksToRuntime(),
    ]


def _vision(policy: Policy | None) -> list[ir.passes.InPlacePass]:
    """The fused operators of a vision tower; its activations are left as they are too."""
    return fused_vision(policy and dataclasses.replace(policy, accuracy_level=1))


def _check_graph(model: ir.Model) -> None:
    """Refuse a lowered graph with operators in a form that CUDA's kernels do not have.

    Raises:
        InputError: attention under a chunk mask, or experts in blocks of another size than QMoE takes.
    """
    for node in model.graph:
        bias = node.inputs[10] if node.op_type == "GroupQueryAttention" and len(node.inputs) > 10 else None
        if bias is not None:
            raise InputError(
                "--kv-layout static: a context beyond one chunk needs a mask that GroupQueryAttention does not take on "
                "CUDA; use --kv-layout chunked, or a shorter --max-context"
            )
        if node.op_type == "QMoE" and (block := node.attributes.get_int("block_size")) not in _EXPERT_BLOCKS:
            sizes = " or ".join(map(str, _EXPERT_BLOCKS))
            raise InputError(
                f"{node.name}: experts in blocks of {block}, which is not {sizes}, as QMoE wants it on CUDA; "
                "leave them float with a --policy that does not name them"
            )


ORT_CUDA = Target(
    name="ort-cuda",
    summary="ONNX Runtime's fused operators, on CUDA",
    runtime=Runtime("onnxruntime", "cuda"),
    dtypes=("fp16",),
    kv_layouts=("static", "chunked"),
    kv_dtypes=(),
    weight_kinds=("int8", "int4"),
    calibrates=True,
    reasons={
        **CACHES_IN_PLACE,
        "fp32": "computes in fp16, which GroupQueryAttention needs there",
        "bf16": "computes in fp16, which GroupQueryAttention needs there",
        "fp8": "has no documented kernel for FP8 weights",
    },
    lower=_operators,
    lower_vision=_vision,
    check_graph=_check_graph,
)
