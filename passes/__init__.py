"""Graph passes: each rewrites the decoder in place, checks its precondition and says what it does as a formula."""

from __future__ import annotations

from l4export.passes.activation_quantization import ActivationQuantization
from l4export.passes.attention_fusion import AttentionFusion
from l4export.passes.context_limit import ContextLimit
from l4export.passes.decomposable_attention import DecomposableAttention
from l4export.passes.expert_fusion import ExpertFusion
from l4export.passes.fixed_capacity import FixedCapacity
from l4export.passes.inline_dialect import InlineDialect
from l4export.passes.kv_cache_cast import KVCacheCast
from l4export.passes.kv_cache_layout import KVCacheLayout
from l4export.passes.kv_cache_quantization import KVCacheQuantization
from l4export.passes.projection_packing import ProjectionPacking
from l4export.passes.qk_norm_before_rotary import QKNormBeforeRotary
from l4export.passes.raw_expert_weights import RawExpertWeights
from l4export.passes.remove_unused import RemoveUnused
from l4export.passes.required_inputs import RequiredInputs
from l4export.passes.runtime_checks import RuntimeChecks
from l4export.passes.standard_attention import StandardAttention
from l4export.passes.standard_experts import StandardExperts
from l4export.passes.untransposed_weights import UntransposedWeights
from l4export.passes.weight_dequantization import WeightDequantization
from l4export.passes.weight_quantization import WeightQuantization

__all__ = [
    "ActivationQuantization",
    "AttentionFusion",
    "ContextLimit",
    "DecomposableAttention",
    "ExpertFusion",
    "FixedCapacity",
    "InlineDialect",
    "KVCacheCast",
    "KVCacheLayout",
    "KVCacheQuantization",
    "ProjectionPacking",
    "QKNormBeforeRotary",
    "RawExpertWeights",
    "RemoveUnused",
    "RequiredInputs",
    "RuntimeChecks",
    "StandardAttention",
    "StandardExperts",
    "UntransposedWeights",
    "WeightDequantization",
    "WeightQuantization",
]
