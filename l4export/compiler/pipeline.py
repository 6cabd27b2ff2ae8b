"""The compiler, as a table of contents: which passes make an engine, in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from l4export import passes
from l4export.calibration.weight_codes import CalibrationPlan
from l4export.quantization.policy import Policy

__all__ = ["KV_BITS", "KV_FLOATS", "TARGETS", "PipelineOptions", "pass_name", "pipeline", "run_pipeline"]

TARGETS = ("ort-cpu", "ort-cuda", "onnx", "tensorrt-rtx", "tensorrt")
KV_FLOATS = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}
KV_BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class PipelineOptions:
    """What decides which passes run: the target, the KV layout (`concat`, `static`, `chunked`), the longest sequence in
    tokens, what is quantised how (None: nothing), and the KV dtype (`fp32`, `fp16`, `int8`, `int4`; None: as computed).

    `activations` is `fp8` where FP8 weights are multiplied by FP8 activations. `kv_scales` are those of
    `QuantizeKVCache`, `activation_scales` of `QuantizeActivations`; `calibration` finds the codes of weights
    (None: rounding to nearest).
    """

    target: str
    kv_layout: str
    max_context: int
    policy: Policy | None = None
    kv_dtype: str | None = None
    kv_scales: Mapping[str, NDArray[np.float32]] | None = None
    calibration: CalibrationPlan | None = None
    activations: str | None = None
    activation_scales: Mapping[str, float] | None = None


def pipeline(options: PipelineOptions) -> list[ir.passes.InPlacePass]:
    """The passes from the reference graph to the target's. Every graph on the way can be run, but TensorRT's last."""
    lowerings = {
        "ort-cpu": _to_onnxruntime,
        "ort-cuda": _to_cuda,
        "onnx": _to_standard_onnx,
        "tensorrt-rtx": _to_tensorrt,
        "tensorrt": _to_tensorrt,
    }
    return [
        # how many tokens there may be, and where their keys and values live
        passes.LimitContext(options.max_context),
        passes.LayOutKVCache(options.kv_layout),
        # the target's own operators
        *lowerings[options.target](options),
        # what is left of the dialect becomes standard operators
        passes.InlineDialect(),
        passes.RemoveUnused(),
    ]


def _to_onnxruntime(options: PipelineOptions) -> list[ir.passes.InPlacePass]:
    """ONNX Runtime's fused operators."""
    kv_float, kv_bits = KV_FLOATS.get(options.kv_dtype or ""), KV_BITS.get(options.kv_dtype or "")
    return [
        # only the chosen experts are evaluated
        passes.FuseExperts(),
        # keys and values in another float type
        *([passes.CastKVCache(kv_float)] if kv_float else []),
        # rotation, cache update, masking and attention in one operator
        passes.MoveQKNormBeforeRotary(),
        passes.FuseAttention(options.max_context),
        # keys and values in fewer bits
        *([passes.QuantizeKVCache(kv_bits, options.kv_scales)] if kv_bits else []),
        # weights stay in the checkpoint's order
        passes.KeepWeightsUntransposed(),
        # weights in fewer bits, as the policy says
        *([passes.QuantizeWeightsForOnnxRuntime(options.policy, options.calibration)] if options.policy else []),
        *([passes.PackProjections()] if options.policy else []),
    ]


def _to_cuda(options: PipelineOptions) -> list[ir.passes.InPlacePass]:
    """ONNX Runtime's fused operators, in the forms that its CUDA provider has.

    Its kernels leave activations as they are, so a CPU that executes the graph in their place is told to do the same.
    """
    exact = options.policy and dataclasses.replace(options.policy, accuracy_level=1)
    return [
        *_to_onnxruntime(dataclasses.replace(options, policy=exact)),
        # expert weights in the order of every provider
        passes.MarkRawExpertWeights(),
        # bad input is refused by the runtime, not by the graph
        passes.LeaveChecksToRuntime(),
    ]


def _to_standard_onnx(options: PipelineOptions) -> list[ir.passes.InPlacePass]:
    """Opset 24 alone."""
    return [
        # the chosen experts for few tokens, all of them for many
        passes.LowerExperts(),
        # caches updated in place, attention under explicit masks
        passes.LowerAttention(),
        # weights in fewer bits, dequantised where they are read
        *([passes.QuantizeWeightsInONNX(options.policy)] if options.policy else []),
        # what they are multiplied by in fewer bits too
        *([passes.QuantizeActivations(options.activation_scales)] if options.activations else []),
    ]


def _to_tensorrt(options: PipelineOptions) -> list[ir.passes.InPlacePass]:
    """Standard ONNX, and what TensorRT wants beyond it."""
    return [
        *_to_standard_onnx(options),
        # bad input is refused by the runtime, not by the graph
        passes.LeaveChecksToRuntime(),
        # sizes that are known, inputs that are given
        passes.FixCacheCapacity(options.max_context),
        passes.RequireInputs(),
        # any number format, any head width
        passes.AllowDecomposedAttention(),
    ]


def run_pipeline(
    model: ir.Model, options: PipelineOptions, on_stage: Callable[[int, str, ir.Model], None] | None = None
) -> list[str]:
    """Run the passes on `model` in place and return their names.

    `on_stage(index, name, model)` sees the graph at the start (0, "reference") and after each pass.
    """
    names = []
    if on_stage:
        on_stage(0, "reference", model)
    for index, step in enumerate(pipeline(options), start=1):
        step(model)
        names.append(pass_name(step))
        if on_stage:
            on_stage(index, names[-1], model)
    return names


def pass_name(step: ir.passes.PassBase) -> str:
    """The pass's name in manifests and dumps: its file's name, such as `fuse_experts`."""
    return type(step).__module__.rpartition(".")[2]
