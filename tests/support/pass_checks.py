"""What the tests of several passes share: every pass in an order in which it may run, and looks at the result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from l4export import passes
from l4export.quantization.policy import standard_policy
from l4export.quantization.schemes import ScaleDtype

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
CONTEXT = 64

# The same float32 sums in another order: a few times 6e-8 of values of order one to ten.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

Order = dict[str, Callable[[], ir.passes.InPlacePass]]


def _fp8() -> ir.passes.InPlacePass:
    policy = standard_policy("fp8")
    assert policy is not None
    return passes.QuantizeWeightsInONNX(policy)


def _int4(scale_dtype: ScaleDtype = "float32") -> ir.passes.InPlacePass:
    policy = standard_policy("int4")
    assert policy is not None
    return passes.QuantizeWeightsForOnnxRuntime(policy, scale_dtype=scale_dtype)


PASSES: Order = {
    "limit_context": lambda: passes.LimitContext(CONTEXT),
    "lay_out_kv_cache": lambda: passes.LayOutKVCache("chunked"),
    "fuse_experts": passes.FuseExperts,
    "move_qk_norm_before_rotary": passes.MoveQKNormBeforeRotary,
    "fuse_attention": lambda: passes.FuseAttention(CONTEXT),
    "keep_weights_untransposed": passes.KeepWeightsUntransposed,
    "inline_dialect": passes.InlineDialect,
    "remove_unused": passes.RemoveUnused,
}

STANDARD: Order = {
    "lay_out_kv_cache": lambda: passes.LayOutKVCache("chunked"),
    "lower_experts": passes.LowerExperts,
    "lower_attention": passes.LowerAttention,
    "quantize_weights_in_onnx": _fp8,
    "quantize_activations": passes.QuantizeActivations,
    "set_activation_scales": lambda: passes.SetActivationScales(defaultdict(lambda: 0.5)),
    "leave_checks_to_runtime": passes.LeaveChecksToRuntime,
    "fix_cache_capacity": lambda: passes.FixCacheCapacity(CONTEXT),
    "require_inputs": passes.RequireInputs,
    "allow_decomposed_attention": passes.AllowDecomposedAttention,
}

FEWER_BITS: Order = {
    "limit_context": lambda: passes.LimitContext(CONTEXT),
    "fuse_experts": passes.FuseExperts,
    "move_qk_norm_before_rotary": passes.MoveQKNormBeforeRotary,
    "fuse_attention": lambda: passes.FuseAttention(CONTEXT),
    "quantize_kv_cache": lambda: passes.QuantizeKVCache(8),
    "set_kv_scales": lambda: passes.SetKVScales(defaultdict(lambda: np.full((2, 1, 16), 0.5, np.float32))),
    "keep_weights_untransposed": passes.KeepWeightsUntransposed,
    "quantize_weights_for_onnxruntime": _int4,
    "pack_projections": passes.PackProjections,
    "mark_raw_expert_weights": passes.MarkRawExpertWeights,
}

FOR_CPU: Order = {
    "fuse_experts": passes.FuseExperts,
    "keep_weights_untransposed": passes.KeepWeightsUntransposed,
    "quantize_weights_for_onnxruntime": lambda: _int4("float16"),
    "tile_products": passes.TileProducts,
    "tile_experts": passes.TileExperts,
    "fuse_gated_units": passes.FuseGatedUnits,
    "absorb_shared_expert": passes.AbsorbSharedExpert,
}

FOR_CUDA: Order = {
    "fuse_experts": passes.FuseExperts,
    "keep_weights_untransposed": passes.KeepWeightsUntransposed,
    "quantize_weights_for_onnxruntime": _int4,
    "mark_raw_expert_weights": passes.MarkRawExpertWeights,
    "pack_expert_weights": passes.PackExpertWeights,
}

OTHER_FLOATS: Order = {"cast_kv_cache": lambda: passes.CastKVCache(ir.DataType.FLOAT16)}

CUDA: Order = {
    "limit_context": lambda: passes.LimitContext(CONTEXT),
    "lay_out_kv_cache": lambda: passes.LayOutKVCache("chunked"),
    "fuse_experts": passes.FuseExperts,
    "move_qk_norm_before_rotary": passes.MoveQKNormBeforeRotary,
    "fuse_attention": lambda: passes.FuseAttention(CONTEXT),
    "keep_weights_untransposed": passes.KeepWeightsUntransposed,
    "leave_checks_to_runtime": passes.LeaveChecksToRuntime,
    "require_inputs": passes.RequireInputs,
    "set_total_to_capacity": passes.SetTotalToCapacity,
    "keep_positions_by_gather": passes.KeepPositionsByGather,
    "remove_unused": passes.RemoveUnused,
    "pack_qkv": passes.PackQKV,
    "attend_to_packed_qkv": passes.AttendToPackedQKV,
    "write_out_qk_norm": lambda: passes.WriteOutQKNorm(FLOAT),
    "fuse_residual_norm": passes.FuseResidualNorm,
    "fuse_swish": passes.FuseSwish,
    "inline_dialect": passes.InlineDialect,
    "copy_lengths_to_device": passes.CopyLengthsToDevice,
    "fuse_qk_norm": passes.FuseQKNorm,
}

VISION: Order = {
    "fuse_tile_attention": passes.FuseTileAttention,
    "lower_tile_attention": passes.LowerTileAttention,
}
"""Passes of the vision tower, each of which can be the first."""

ORDERS = (PASSES, STANDARD, FEWER_BITS, FOR_CPU, FOR_CUDA, OTHER_FLOATS, CUDA)
MAKE = {name: make for order in ORDERS for name, make in order.items()}
EVERY = list(MAKE)


def up_to(name: str, model: ir.Model) -> ir.passes.PassResult:
    """Run the passes of the first order that has it, `name` last; returns the result of that one."""
    order = next(order for order in ORDERS if name in order)
    for other, make in order.items():
        result = make()(model)
        if other == name:
            return result
    raise KeyError(name)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def node(model: ir.Model, op_type: str) -> ir.Node:
    """The only node of its type."""
    (found,) = (node for node in model.graph if node.op_type == op_type)
    return found


def initializer(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def interface(model: ir.Model) -> list[str | None]:
    return [value.name for value in (*model.graph.inputs, *model.graph.outputs)]


def fuse(model: ir.Model, context: int = CONTEXT) -> None:
    """Attention fused, as the pipeline does it."""
    passes.LimitContext(context)(model)
    passes.MoveQKNormBeforeRotary()(model)
    passes.FuseAttention(context)(model)


def chunked(model: ir.Model) -> ir.Model:
    passes.LayOutKVCache("chunked")(model)
    return model
