"""What ONNX Runtime's CUDA provider computes as its CPU provider does, and what is refused because it may not.

From ONNX Runtime's tables of kernels and its notes on MoE and QMoE (1.31); none of it has been executed on a GPU here.
"""

from __future__ import annotations

import onnx_ir as ir

from l4export.errors import InputError
from l4export.quantization.policy import Policy

__all__ = ["check_cuda_graph", "check_cuda_options"]

_EXPERT_BLOCKS = (64, 128)
"""Block sizes that QMoE's CUDA kernels are made for, on every GPU."""


def check_cuda_options(dtype: str, policy: Policy | None) -> None:
    """Refuse number formats without a CUDA kernel that a CPU could be compared with.

    Raises:
        InputError: a float type other than fp16, or fp8 weights.
    """
    if dtype != "fp16":
        raise InputError(f"--dtype {dtype}: --target ort-cuda computes in fp16, which GroupQueryAttention needs there")
    if policy and any(rule.kind == "fp8" for rule in policy.rules):
        raise InputError("fp8 weights: --target ort-cuda has no documented kernel for them; use int4 or int8")


def check_cuda_graph(model: ir.Model) -> None:
    """Refuse a lowered graph with operators in a form that CUDA's kernels have not.

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
