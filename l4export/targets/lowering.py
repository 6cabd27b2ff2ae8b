"""The two families of operators that targets are made of: ONNX Runtime's fused ones, and standard ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from l4export.engine.kv_cache import KV_BITS
from l4export.targets.target import GraphOptions

if TYPE_CHECKING:
    import onnx_ir as ir

    from l4export.quantization.policy import Policy
    from l4export.quantization.schemes import ScaleDtype

__all__ = ["fused_operators", "fused_vision", "standard_operators", "standard_vision"]


def fused_operators(options: GraphOptions, scale_dtype: ScaleDtype = "float32") -> list[ir.passes.InPlacePass]:
    """Return the passes to ONNX Runtime's fused operators; `scale_dtype` is that of integer weights in float32."""
    from l4export import passes
    from l4export.graph.dtypes import FLOATS

    kv_float, kv_bits = FLOATS.get(options.kv_dtype or ""), KV_BITS.get(options.kv_dtype or "")
    return [
        # only the chosen experts are evaluated
        passes.FuseExperts(),
        # keys and values in another float type
        *([passes.CastKVCache(kv_float)] if kv_float else []),
        # rotation, cache update, masking and attention in one operator
        passes.MoveQKNormBeforeRotary(),
        passes.FuseAttention(options.max_context),
        # keys and values in fewer bits
        *([passes.QuantizeKVCache(kv_bits)] if kv_bits else []),
        # weights stay in the checkpoint's order
        passes.KeepWeightsUntransposed(),
        # weights in fewer bits, as the policy says
        *(
            [passes.QuantizeWeightsForOnnxRuntime(options.policy, options.calibration, scale_dtype)]
            if options.policy
            else []
        ),
    ]


def standard_operators(options: GraphOptions) -> list[ir.passes.InPlacePass]:
    """Return the passes to the operators of opset 24 alone."""
    from l4export import passes

    return [
        # the chosen experts for few tokens, all of them for many
        passes.LowerExperts(),
        # caches updated in place, attention under explicit masks
        passes.LowerAttention(),
        # weights in fewer bits, dequantised where they are read
        *([passes.QuantizeWeightsInONNX(options.policy)] if options.policy else []),
        # activations that they are multiplied by in fewer bits too
        *([passes.QuantizeActivations()] if options.activations else []),
    ]


def fused_vision(policy: Policy | None, scale_dtype: ScaleDtype = "float32") -> list[ir.passes.InPlacePass]:
    """Return the passes of a vision tower to ONNX Runtime's fused operators; `scale_dtype` as `fused_operators`."""
    from l4export import passes

    return [
        # rotation from tables, attention without a mask
        passes.FuseTileAttention(),
        # weights stay in the checkpoint's order
        passes.KeepWeightsUntransposed(),
        # weights in fewer bits, where the policy names them
        *(
            [passes.QuantizeWeightsForOnnxRuntime(policy, scale_dtype=scale_dtype), passes.PackProjections()]
            if policy
            else []
        ),
    ]


def standard_vision(policy: Policy | None) -> list[ir.passes.InPlacePass]:
    """Return the passes of a vision tower to the operators of opset 24 alone."""
    from l4export import passes

    return [
        passes.LowerTileAttention(),
        # weights in fewer bits, where the policy names them
        *([passes.QuantizeWeightsInONNX(policy)] if policy else []),
    ]
