"""Where Meta's shards hold each weight of the inventory, and how what the shards have is put together.

Names and cuts are those of Meta's own program [llama-models, models/llama4: model.py, ffn.py, moe.py, vision/, with the
names that their load hooks take]. A shard has a part of most weights, by rows or by columns; norms, the router and some
biases every shard has as a whole, and the first one's are taken, as transformers' conversion does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from l4export.checkpoint.meta_scales import scaled_weight
from l4export.checkpoint.meta_shards import MetaShards
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.checkpoint.stored_weight import StoredWeight
from l4export.checkpoint.weight_views import Joined, Rows, Stacked, Transposed
from l4export.errors import InputError
from l4export.model.config import ModelConfig

__all__ = ["MetaWeights", "is_unused"]

_UNUSED = re.compile(
    r"rope\.freqs|freqs?_cis|.*\.(global_gate_stats_3E|running_gate_stats_3E|expert_activation_DE|_extra_state)"
)


@dataclass(frozen=True)
class _Rule:
    """One way of storing a weight.

    Attributes:
        key: Meta's name; "{}" is the layer.
        axis: Along which the shards' parts are joined; None: every shard has the whole.
        view: What of a shard's tensor belongs to the weight.
        scale: Its other name in a file of scales, in which it also has its own; empty: it is never quantised.
    """

    key: str
    axis: int | None
    view: str = "whole"
    scale: str = ""


def _projection(key: str, view: str, alone: str, axis: int) -> tuple[_Rule, _Rule]:
    """Within a fused tensor, or by itself."""
    return _Rule(f"layers.{{}}.{key}", axis, view), _Rule(f"layers.{{}}.{alone}", axis)


def _experts(key: str, alone: str, axis: int) -> tuple[_Rule, _Rule]:
    prefix = "layers.{}.feed_forward.experts."
    return _Rule(f"{prefix}{key}", axis, "stacked", f"{prefix}{alone}"), _Rule(f"{prefix}{alone}", axis)


def _shared(key: str, alone: str, axis: int) -> tuple[_Rule, _Rule]:
    prefix = "layers.{}.feed_forward."
    scale = f"{prefix}shared_expert.{alone}"
    return _Rule(f"{prefix}{key}.weight", axis, scale=scale), _Rule(f"{scale}.weight", axis)


def _norm(*keys: str) -> tuple[_Rule, ...]:
    return tuple(_Rule(f"layers.{{}}.{key}", None) for key in keys)


_GATES = _experts("moe_w_in_eD_F", "w1", 2)
_UPS = _experts("moe_w_swiglu_eD_F", "w3", 2)

_TEXT: dict[str, tuple[_Rule, ...]] = {
    "model.embed_tokens.weight": (_Rule("tok_embeddings.weight", 0),),
    "model.norm.weight": (_Rule("norm.weight", None),),
    "lm_head.weight": (_Rule("output.weight", 0),),
    "input_layernorm.weight": _norm("attention.wqkv.layer_norm_weight", "attention_norm.weight"),
    "self_attn.q_proj.weight": _projection("attention.wqkv.weight", "q", "attention.wq.weight", 0),
    "self_attn.k_proj.weight": _projection("attention.wqkv.weight", "k", "attention.wk.weight", 0),
    "self_attn.v_proj.weight": _projection("attention.wqkv.weight", "v", "attention.wv.weight", 0),
    "self_attn.o_proj.weight": (_Rule("layers.{}.attention.wo.weight", 1),),
    "post_attention_layernorm.weight": _norm(
        "feed_forward.norm.weight", "feed_forward.mlp.layer_norm_weight", "ffn_norm.weight"
    ),
    "feed_forward.gate_proj.weight": _projection("feed_forward.mlp.fc1_weight", "first", "feed_forward.w1.weight", 0),
    "feed_forward.up_proj.weight": _projection("feed_forward.mlp.fc1_weight", "second", "feed_forward.w3.weight", 0),
    "feed_forward.down_proj.weight": _projection("feed_forward.mlp.fc2_weight", "whole", "feed_forward.w2.weight", 1),
    "feed_forward.router.weight": (_Rule("layers.{}.feed_forward.router_DE", None, "transposed"),),
    "feed_forward.experts.down_proj": _experts("moe_w_out_eF_D", "w2", 1),
    "feed_forward.shared_expert.gate_proj.weight": _shared("w_in_shared_FD", "w1", 0),
    "feed_forward.shared_expert.up_proj.weight": _shared("w_swiglu_FD", "w3", 0),
    "feed_forward.shared_expert.down_proj.weight": _shared("w_out_shared_DF", "w2", 1),
}
"""The weights of the inventory, those of layers by their names within one. Gates and ups of experts are apart."""

_ENCODER = "vision_embeddings.vision_encoder."
_BLOCK = f"{_ENCODER}transformer.resblocks.{{}}."
_ADAPTER = "vision_embeddings.vision_adapter.mlp."


def _with_bias(name: str, key: str, weight_axis: int | None, bias_axis: int | None) -> dict[str, tuple[_Rule, ...]]:
    return {
        f"{name}.weight": (_Rule(f"{key}.weight", weight_axis),),
        f"{name}.bias": (_Rule(f"{key}.bias", bias_axis),),
    }


_VISION: dict[str, tuple[_Rule, ...]] = {
    "vision_model.patch_embedding.linear.weight": (_Rule(f"{_ENCODER}conv1._linear.weight", 0),),
    "vision_model.class_embedding": (_Rule(f"{_ENCODER}class_embedding", None),),
    "vision_model.positional_embedding_vlm": (_Rule(f"{_ENCODER}positional_embedding_vlm", None),),
    **_with_bias("vision_model.layernorm_pre", f"{_ENCODER}ln_pre", None, None),
    **_with_bias("vision_model.layernorm_post", f"{_ENCODER}ln_post", None, None),
    **_with_bias("input_layernorm", f"{_BLOCK}ln_1", None, None),
    **_with_bias("post_attention_layernorm", f"{_BLOCK}ln_2", None, None),
    **_with_bias("self_attn.q_proj", f"{_BLOCK}attn.wq", 0, 0),
    **_with_bias("self_attn.k_proj", f"{_BLOCK}attn.wk", 0, 0),
    **_with_bias("self_attn.v_proj", f"{_BLOCK}attn.wv", 0, 0),
    **_with_bias("self_attn.o_proj", f"{_BLOCK}attn.wo", 1, None),
    **_with_bias("mlp.fc1", f"{_BLOCK}mlp.c_fc", 0, 0),
    **_with_bias("mlp.fc2", f"{_BLOCK}mlp.c_proj", 1, None),
    "vision_model.vision_adapter.mlp.fc1.weight": (_Rule(f"{_ADAPTER}c_fc.weight", 0),),
    "vision_model.vision_adapter.mlp.fc2.weight": (_Rule(f"{_ADAPTER}c_proj.weight", 1),),
    "multi_modal_projector.linear_1.weight": (_Rule("vision_projection.weight", 0),),
}


def is_unused(name: str) -> bool:
    """Whether a tensor of Meta's is none of the model: rotary frequencies, and what training kept count of."""
    return bool(_UNUSED.fullmatch(name))


class MetaWeights:
    """The weights of the inventory, put together from shards."""

    def __init__(self, shards: MetaShards, config: ModelConfig) -> None:
        self._shards, self._config = shards, config

    def find(self, name: str, shape: tuple[int, ...]) -> StoredWeight | None:
        """The weight `name` of the inventory, text or vision, in that shape; None where nothing is stored for it.

        Raises:
            InputError: some shards lack it, or what they have gives another shape, or is of no float dtype.
        """
        vision = re.fullmatch(r"vision_model\.model\.layers\.(\d+)\.(.+)", name)
        text = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        of_layer = vision or text
        layer, short = (of_layer[1], of_layer[2]) if of_layer else ("", name)
        found: StoredWeight | None
        if text and short == "feed_forward.experts.gate_up_proj":
            halves = [half for rules in (_GATES, _UPS) if (half := self._first(name, rules, layer))]
            found = Joined(name, halves, 2) if len(halves) == 2 else None
        else:
            of_tower = vision or name.startswith(("vision_", "multi_modal_"))
            found = self._first(name, (_VISION if of_tower else _TEXT).get(short, ()), layer)
        if found and found.shape != tuple(shape):
            raise InputError(
                f"{self._shards.path}: weight {name!r} of {len(self._shards.tensors)} shards has shape "
                f"{list(found.shape)}, expected {list(shape)}; shards are missing, or params.json is of another model"
            )
        return found

    def _first(self, name: str, rules: tuple[_Rule, ...], layer: str) -> StoredWeight | None:
        """The weight by the first rule whose tensors are there."""
        for rule in rules:
            if tensors := self._shards.of_each_rank(rule.key.format(layer)):
                return self._joined(name, rule, tensors, layer)
        return None

    def _joined(self, name: str, rule: _Rule, tensors: list[SourceTensor], layer: str) -> StoredWeight:
        used = tensors[:1] if rule.axis is None else tensors
        shares = [self._share(rule, tensor, rank, layer) for rank, tensor in enumerate(used)]
        for tensor, share in zip(used, shares, strict=True):
            if len(share.shape) != len(shares[0].shape) or (rule.axis or 0) >= len(share.shape):
                raise _misshapen(tensor)
            others = [
                (one, other)
                for axis, (one, other) in enumerate(zip(share.shape, shares[0].shape, strict=True))
                if axis != rule.axis
            ]
            if any(one != other for one, other in others):
                raise _misshapen(tensor)
        return Joined(name, shares, rule.axis or 0)

    def _share(self, rule: _Rule, tensor: SourceTensor, rank: int, layer: str) -> StoredWeight:
        """What a shard has of a weight."""
        if rule.scale and tensor.entry.dtype == "F8_E4M3":
            return scaled_weight(self._shards, tensor, rank, rule.scale.format(layer), self._count(rule))
        _ = tensor.dtype
        return _VIEWS[rule.view](tensor, self._config)

    def _count(self, rule: _Rule) -> int | None:
        """How many matrices codes are of."""
        return self._config.num_local_experts if rule.view == "stacked" else None


def _fraction(tensor: SourceTensor, start: int, stop: int, of: int) -> StoredWeight:
    """The rows from `start` to `stop` of a tensor that is cut into `of` equal pieces."""
    if not tensor.shape or tensor.shape[0] % of:
        raise _misshapen(tensor)
    piece = tensor.shape[0] // of
    return Rows(tensor, start * piece, stop * piece)


def _attention(which: int) -> Callable[[SourceTensor, ModelConfig], StoredWeight]:
    """Queries, keys or values of wqkv: in every shard its own heads, queries, then keys, then values."""

    def view(tensor: SourceTensor, config: ModelConfig) -> StoredWeight:
        heads, kv = config.num_attention_heads, config.num_key_value_heads
        bounds = (0, heads, heads + kv, heads + 2 * kv)
        return _fraction(tensor, bounds[which], bounds[which + 1], bounds[3])

    return view


def _stacked(tensor: SourceTensor, config: ModelConfig) -> StoredWeight:
    if len(tensor.shape) != 2 or not config.num_local_experts or tensor.shape[0] % config.num_local_experts:
        raise _misshapen(tensor)
    return Stacked(tensor, config.num_local_experts)


def _transposed(tensor: SourceTensor, config: ModelConfig) -> StoredWeight:
    if len(tensor.shape) != 2:
        raise _misshapen(tensor)
    return Transposed(tensor)


_VIEWS: dict[str, Callable[[SourceTensor, ModelConfig], StoredWeight]] = {
    "whole": lambda tensor, config: tensor,
    "q": _attention(0),
    "k": _attention(1),
    "v": _attention(2),
    "first": lambda tensor, config: _fraction(tensor, 0, 1, 2),
    "second": lambda tensor, config: _fraction(tensor, 1, 2, 2),
    "stacked": _stacked,
    "transposed": _transposed,
}


def _misshapen(tensor: SourceTensor) -> InputError:
    return InputError(
        f"{tensor.file.path}: tensor {tensor.name!r} has shape {list(tensor.shape)}, which does not fit params.json or "
        "the other shards"
    )
