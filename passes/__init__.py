"""Graph passes: each rewrites a graph in place, checks its precondition and says what it does as a formula."""

from __future__ import annotations

from l4export.passes.absorb_shared_expert import AbsorbSharedExpert
from l4export.passes.allow_decomposed_attention import AllowDecomposedAttention
from l4export.passes.attend_to_packed_qkv import AttendToPackedQKV
from l4export.passes.cast_kv_cache import CastKVCache
from l4export.passes.copy_lengths_to_device import CopyLengthsToDevice
from l4export.passes.fix_cache_capacity import FixCacheCapacity
from l4export.passes.fuse_attention import FuseAttention
from l4export.passes.fuse_experts import FuseExperts
from l4export.passes.fuse_gated_units import FuseGatedUnits
from l4export.passes.fuse_qk_norm import FuseQKNorm
from l4export.passes.fuse_residual_norm import FuseResidualNorm
from l4export.passes.fuse_swish import FuseSwish
from l4export.passes.fuse_tile_attention import FuseTileAttention
from l4export.passes.inline_dialect import InlineDialect
from l4export.passes.keep_positions_by_gather import KeepPositionsByGather
from l4export.passes.keep_weights_untransposed import KeepWeightsUntransposed
from l4export.passes.lay_out_kv_cache import LayOutKVCache
from l4export.passes.leave_checks_to_runtime import LeaveChecksToRuntime
from l4export.passes.limit_context import LimitContext
from l4export.passes.lower_attention import LowerAttention
from l4export.passes.lower_experts import LowerExperts
from l4export.passes.lower_tile_attention import LowerTileAttention
from l4export.passes.mark_raw_expert_weights import MarkRawExpertWeights
from l4export.passes.move_qk_norm_before_rotary import MoveQKNormBeforeRotary
from l4export.passes.pack_expert_weights import PackExpertWeights
from l4export.passes.pack_projections import PackProjections
from l4export.passes.pack_qkv import PackQKV
from l4export.passes.quantize_activations import QuantizeActivations
from l4export.passes.quantize_kv_cache import QuantizeKVCache
from l4export.passes.quantize_weights_for_onnxruntime import QuantizeWeightsForOnnxRuntime
from l4export.passes.quantize_weights_in_onnx import QuantizeWeightsInONNX
from l4export.passes.remove_unused import RemoveUnused
from l4export.passes.require_inputs import RequireInputs
from l4export.passes.set_activation_scales import SetActivationScales
from l4export.passes.set_kv_scales import SetKVScales
from l4export.passes.set_total_to_capacity import SetTotalToCapacity
from l4export.passes.tile_experts import TileExperts
from l4export.passes.tile_products import TileProducts
from l4export.passes.write_out_qk_norm import WriteOutQKNorm

__all__ = [
    "AbsorbSharedExpert",
    "AllowDecomposedAttention",
    "AttendToPackedQKV",
    "CastKVCache",
    "CopyLengthsToDevice",
    "FixCacheCapacity",
    "FuseAttention",
    "FuseExperts",
    "FuseGatedUnits",
    "FuseQKNorm",
    "FuseResidualNorm",
    "FuseSwish",
    "FuseTileAttention",
    "InlineDialect",
    "KeepPositionsByGather",
    "KeepWeightsUntransposed",
    "LayOutKVCache",
    "LeaveChecksToRuntime",
    "LimitContext",
    "LowerAttention",
    "LowerExperts",
    "LowerTileAttention",
    "MarkRawExpertWeights",
    "MoveQKNormBeforeRotary",
    "PackExpertWeights",
    "PackProjections",
    "PackQKV",
    "QuantizeActivations",
    "QuantizeKVCache",
    "QuantizeWeightsForOnnxRuntime",
    "QuantizeWeightsInONNX",
    "RemoveUnused",
    "RequireInputs",
    "SetActivationScales",
    "SetKVScales",
    "SetTotalToCapacity",
    "TileExperts",
    "TileProducts",
    "WriteOutQKNorm",
]
