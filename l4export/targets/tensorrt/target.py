"""`--target tensorrt-rtx` and `--target tensorrt`: standard ONNX, compiled into TensorRT engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from l4export.engine.manifest import Runtime
from l4export.targets.lowering import standard_operators, standard_vision
from l4export.targets.target import CACHES_IN_PLACE, GraphOptions, LayerRange, Target, UnfinishedEngine

if TYPE_CHECKING:
    import onnx_ir as ir

    from l4export.quantization.policy import Policy

__all__ = ["TENSORRT", "TENSORRT_RTX"]


def _operators(options: GraphOptions) -> list[ir.passes.InPlacePass]:
    """Return the passes to standard ONNX, and those that TensorRT needs beyond it."""
    from l4export import passes

    return [
        *standard_operators(options),
        # bad input is refused by the runtime, not by the graph
        passes.LeaveChecksToRuntime(),
        # sizes that are known, inputs that are given
        passes.FixCacheCapacity(options.max_context),
        passes.RequireInputs(),
        # any number format, any head width
        passes.AllowDecomposedAttention(),
    ]


def _vision(policy: Policy | None) -> list[ir.passes.InPlacePass]:
    """Return the passes of a vision tower to standard ONNX, and those that TensorRT needs beyond it."""
    from l4export import passes

    return [*standard_vision(policy), passes.AllowDecomposedAttention()]


def _check_capabilities(dtype: str, policy: Policy | None, capabilities: Sequence[str]) -> None:
    from l4export.targets.tensorrt.compile import check_capabilities

    check_capabilities(capabilities, dtype, policy)


def _cut(graph: ir.Graph, budget: int | None) -> tuple[LayerRange, ...]:
    from l4export.targets.tensorrt.parts import layer_ranges

    return layer_ranges(graph, budget)


def _check_machine(provider: str, model: ir.Model, parts: Sequence[LayerRange], tower: ir.Model | None) -> None:
    """Check the machine before the weights are written, not after."""
    from l4export.targets.tensorrt.compile import check_memory, check_tensorrt
    from l4export.targets.tensorrt.parts import constant_bytes, cut_decoder

    check_tensorrt(provider)
    compiled = [*cut_decoder(model, parts), *([tower] if tower else [])]
    check_memory(max(constant_bytes(part.graph) for part in compiled))


def _compile(provider: str, engine: UnfinishedEngine) -> list[str]:
    from l4export.targets.tensorrt.finish import compile_parts

    return compile_parts(provider, engine)


TENSORRT_RTX = Target(
    name="tensorrt-rtx",
    summary="TensorRT for RTX, compiled for named GPUs without one",
    runtime=Runtime("tensorrt", "tensorrt-rtx"),
    dtypes=("fp32", "fp16", "bf16"),
    kv_layouts=("static", "chunked"),
    kv_dtypes=(),
    weight_kinds=("int8", "int4", "fp8"),
    activations=("fp8",),
    positive_scales=True,
    compute_capabilities=True,
    reasons=CACHES_IN_PLACE,
    lower=_operators,
    lower_vision=_vision,
    check_options=_check_capabilities,
    cut=_cut,
    check_machine=partial(_check_machine, "tensorrt-rtx"),
    finish=partial(_compile, "tensorrt-rtx"),
)

TENSORRT = dataclasses.replace(
    TENSORRT_RTX,
    name="tensorrt",
    summary="TensorRT, compiled for this machine's GPU",
    runtime=Runtime("tensorrt", "tensorrt"),
    compute_capabilities=False,
    check_options=lambda *_: None,
    check_machine=partial(_check_machine, "tensorrt"),
    finish=partial(_compile, "tensorrt"),
)
