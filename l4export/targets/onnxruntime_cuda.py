"""`--target ort-cuda`: ONNX Runtime's fused operators in the forms of its CUDA provider.

What CUDA may compute differently from the CPU provider is refused (`l4export.targets.onnxruntime_cuda_checks`). The
rules follow ONNX Runtime's tables of kernels, its notes on MoE and QMoE (1.31), and what was found on an H200
(docs/guide/gpus.md).

Linears stay as `MatMulNBits` reads them, in blocks of the policy. Its other path (`ep.cuda.fpa_intb_gemm`, for blocks
of 32) read the matrices of a layer more slowly on an H200, at one token and in prompts.

There is no `genai_config.json`: onnxruntime-genai gives none of the inputs beside ids, mask and caches.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from l4export.engine.manifest import DeviceNeeds, Runtime
from l4export.targets.lowering import fused_operators, fused_vision
from l4export.targets.onnxruntime_cuda_checks import EXPERT_BLOCKS, check_cuda_graph
from l4export.targets.target import CACHES_IN_PLACE, GraphOptions, Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from l4export.quantization.policy import Policy

__all__ = ["ORT_CUDA"]


def _operators(options: GraphOptions) -> list[ir.passes.InPlacePass]:
    """The fused operators, in the forms that the CUDA provider has and a CPU can still execute.

    Its kernels leave activations as they are, so a CPU that executes the graph in their place is told to do the same.
    """
    import onnx_ir as ir

    from l4export import passes

    exact = options.policy and dataclasses.replace(options.policy, accuracy_level=1)
    return [
        *fused_operators(dataclasses.replace(options, policy=exact)),
        # expert weights in the order of every provider
        passes.MarkRawExpertWeights(),
        # bad input is refused by the runtime, not by the graph
        passes.LeaveChecksToRuntime(),
        # inputs that are given: a default on the device is never replaced
        passes.RequireInputs(),
        # sizes from shapes alone
        passes.SetTotalToCapacity(),
        passes.KeepPositionsByGather(),
        # rotations that attention does now no longer read q and k
        passes.RemoveUnused(),
        # fewer kernels a layer
        passes.PackQKV(),
        passes.AttendToPackedQKV(),
        passes.WriteOutQKNorm(ir.DataType.FLOAT16),
        passes.FuseResidualNorm(),
        passes.FuseSwish(),
        # nothing is copied between host and device within a call
        passes.InlineDialect(),
        passes.CopyLengthsToDevice(),
    ]


def _device_forms(options: GraphOptions) -> list[ir.passes.InPlacePass]:
    """What only CUDA's kernels execute; the packing of weights is the last."""
    from l4export import passes

    return [
        # the norm of queries and keys within attention
        passes.FuseQKNorm(),
        passes.AttendToPackedQKV(),
        passes.RemoveUnused(),
        # experts' weights in the order of the kernel
        *([passes.PackExpertWeights()] if options.policy else []),
    ]


def _vision(policy: Policy | None) -> list[ir.passes.InPlacePass]:
    """The fused operators of a vision tower; its activations are left as they are too."""
    return fused_vision(policy and dataclasses.replace(policy, accuracy_level=1))


ORT_CUDA = Target(
    name="ort-cuda",
    summary="ONNX Runtime's fused operators, on CUDA",
    runtime=Runtime("onnxruntime", "cuda"),
    dtypes=("fp16",),
    kv_layouts=("static", "chunked"),
    kv_dtypes=(),
    weight_kinds=("int8", "int4"),
    calibrates=True,
    expert_blocks=EXPERT_BLOCKS,
    is_judged=True,
    # QMoE's and MatMulNBits's kernels for float16 begin with 7.5 (Turing); onnxruntime-gpu 1.31 is built with CUDA 13
    needs=DeviceNeeds(compute_capability="7.5", cuda="13.0"),
    reasons={
        **CACHES_IN_PLACE,
        "fp32": "computes in fp16, which GroupQueryAttention needs there",
        "bf16": "computes in fp16, which GroupQueryAttention needs there",
        "fp8": "has no documented kernel for FP8 weights",
    },
    lower=_operators,
    specialise=_device_forms,
    check_graph=check_cuda_graph,
    lower_vision=_vision,
)
