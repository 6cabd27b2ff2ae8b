"""Graph passes: each rewrites a graph in place, checks its precondition and says what it does as a formula."""

from __future__ import annotations

from l4export.passes.allow_decomposed_attention import AllowDecomposedAttention
from l4export.passes.cast_kv_cache import CastKVCache
from l4export.passes.fix_cache_capacity import FixCacheCapacity
from l4export.passes.fuse_attention import FuseAttention
from l4export.passes.fuse_experts import FuseExperts
from l4export.passes.fuse_tile_attention import FuseTileAttention
from l4export.passes.inline_dialect import InlineDialect
from l4export.passes.keep_weights_untransposed import KeepWeightsUntransposed
from l4export.passes.lay_out_kv_cache import LayOutKVCache
from l4export.passes.leave_checks_to_runtime import LeaveChecksToRuntime
from l4export.passes.limit_context import LimitContext
from l4export.passes.lower_attention import LowerAttention
from l4export.passes.lower_experts import LowerExperts
from l4export.passes.lower_tile_attention import LowerTileAttention
from l4export.passes.mark_raw_expert_weights import MarkRawExpertWeights
from l4export.passes.move_qk_norm_before_rotary import MoveQKNormBeforeRotary
from l4export.passes.pack_projections import PackProjections
from l4export.passes.quantize_activations import QuantizeActivations
from l4export.passes.quantize_kv_cache import QuantizeKVCache
from l4export.passes.quantize_weights_for_onnxruntime import QuantizeWeightsForOnnxRuntime
from l4export.passes.quantize_weights_in_onnx import QuantizeWeightsInONNX
from l4export.passes.remove_unused import RemoveUnused
from l4export.passes.require_inputs import RequireInputs
from l4export.passes.set_activation_scales import SetActivationScales
from l4export.passes.set_kv_scales import SetKVScales

__all__ = [
    "AllowDecomposedAttention",
    "CastKVCache",
    "FixCacheCapacity",
    "FuseAttention",
    "FuseExperts",
    "FuseTileAttention",
    "InlineDialect",
    "KeepWeightsUntransposed",
    "LayOutKVCache",
    "LeaveChecksToRuntime",
    "LimitContext",
    "LowerAttention",
    "LowerExperts",
    "LowerTileAttention",
    "MarkRawExpertWeights",
    "MoveQKNormBeforeRotary",
    "PackProjections",
    "QuantizeActivations",
    "QuantizeKVCache",
    "QuantizeWeightsForOnnxRuntime",
    "QuantizeWeightsInONNX",
    "RemoveUnused",
    "RequireInputs",
    "SetActivationScales",
    "SetKVScales",
]
