"""RoPE settings in the spellings of transformers 4 and 5, resolved in transformers' own order.

[transformers 5, modeling_rope_utils.py: `convert_rope_params_to_dict`, `standardize_rope_params`]:

1. `rope_scaling` counts if it is not empty, else `rope_parameters`, else neither.
2. `rope_theta` within that object counts before the one beside it, and 500000 stands for none.
3. `rope_type` counts before `type`, and "default" stands for none.
4. `original_max_position_embeddings` beside the object counts before the one within it, and
   `max_position_embeddings` stands for none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from l4export.model.config_fields import Fields, show
from l4export.model.rope import RopeScaling, read_scaling

__all__ = ["KEYS", "rope_from_hf", "theta_from_hf"]

KEYS = ("rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
"""The fields of a text config that decide rotation."""

_ORIGINAL = "original_max_position_embeddings"
_DEFAULT_THETA = 500000.0

_LARGEST_DYNAMIC_FACTOR = 2.0**20
"""transformers computes factor - (factor - 1), which must remain 1."""

_REFUSED = {
    # The keys in a cache were rotated with the frequencies of a shorter text, so the result depends on how the text
    # was cut into calls.
    "longrope": "is 'longrope', whose frequencies change with the length of the text; it cannot be compiled",
    # It leaves part of each head as it is. No Llama 4 checkpoint is known that uses it.
    "proportional": "is 'proportional', which rotates part of each head; it is not supported",
}


def rope_from_hf(text: Fields, max_positions: int, head_dim: int) -> tuple[float, RopeScaling | None]:
    """Theta and scaling of a text config.

    The types `default`, `linear`, `llama3` and `yarn` are computed. `dynamic` is `default` for texts of up to
    `max_positions` tokens, and no engine takes longer ones.

    Raises:
        InputError: a type that is not supported, parameters that are missing or out of range, settings for each type
            of layer (transformers' Llama 4 knows none), or settings that transformers 4 and 5 read differently.
    """
    rope = _chosen(text)
    if nested := [key for key, value in rope.raw.items() if isinstance(value, Mapping) or key.endswith("_attention")]:
        raise rope.refuse(f"rope_type of {show(nested[0])}", "is set apart; Llama 4 has one for all layers")
    theta = theta_from_hf(text, _DEFAULT_THETA)
    _check_whole_heads_rotate(rope, text)
    # transformers 4 took an object without a type for llama3, transformers 5 takes it for default.
    unnamed = None if "factor" in rope.raw else "default"
    kind = rope.raw["rope_type"] = rope.raw.get("rope_type", rope.raw.get("type", unnamed))
    if kind == "default":
        return theta, None
    if kind == "dynamic":
        _check_dynamic(rope, head_dim)
        return theta, None
    if kind not in ("linear", "llama3", "yarn"):
        other = f"is {show(kind)}; expected default, linear, dynamic, llama3 or yarn"
        raise rope.refuse("rope_type", _REFUSED.get(kind, other) if isinstance(kind, str) else other)
    if kind != "linear":
        inner = rope.typed(_ORIGINAL, rope.raw.get(_ORIGINAL, max_positions), int, 1, 2**40)
        rope.raw[_ORIGINAL] = text.typed(_ORIGINAL, text.raw.get(_ORIGINAL, inner), int, 1, 2**40)
    rope.required = True
    if kind == "yarn":
        rope.raw |= _yarn(rope, max_positions)
    return theta, read_scaling(rope)


def theta_from_hf(fields: Fields, default: float) -> float:
    """The base of the angles, from the object that decides, or from beside it; `InputError` unless it is above 0."""
    rope = _chosen(fields)
    return (rope if "rope_theta" in rope.raw else fields).number("rope_theta", default)


def _chosen(text: Fields) -> Fields:
    """A copy of the object that decides."""
    new, old = text.raw.get("rope_parameters"), text.raw.get("rope_scaling")
    parameters = Fields({} if new is None else new, f"{text.where}: rope_parameters")
    return Fields(old, f"{text.where}: rope_scaling") if old else parameters


def _check_whole_heads_rotate(rope: Fields, text: Fields) -> None:
    """Refuse rotation of a part of each head: transformers' Llama 4 ignores it in one type and fails in the others."""
    name = "partial_rotary_factor"
    part = rope.raw[name] if name in rope.raw else 1 if text.raw.get(name) is None else text.raw[name]
    if part != 1:
        raise rope.refuse(name, f"is {show(part)}, not 1; rotation of a part of each head is not supported")


def _check_dynamic(rope: Fields, head_dim: int) -> None:
    """Refuse what transformers cannot compute: it divides by head_dim - 2, and the factor must not be lost in
    rounding."""
    rope.required = True
    if rope.number("factor", 0.0) > _LARGEST_DYNAMIC_FACTOR or head_dim == 2:
        raise rope.refuse(
            "rope_type", "is 'dynamic', with a factor above 2^20 or a head_dim of 2; it has no frequencies"
        )


def _yarn(rope: Fields, max_positions: int) -> dict[str, Any]:
    """YaRN's parameters, with transformers' values for those that are left out."""
    ratio = max_positions / rope.raw[_ORIGINAL]
    factor = ratio if rope.value("factor", None) is None else rope.number("factor", 0.0)
    attention = rope.raw.get("attention_factor")
    if attention is None:
        scales = [rope.number(name, 0.0) if rope.raw.get(name) else 0.0 for name in ("mscale", "mscale_all_dim")]
        one, other = scales if all(scales) else (1.0, 0.0)
        attention = _mscale(factor, one) / _mscale(factor, other)
    return {
        "factor": factor,
        "attention_factor": attention,
        "beta_fast": rope.raw.get("beta_fast") or 32,
        "beta_slow": rope.raw.get("beta_slow") or 1,
        "truncate": rope.raw.get("truncate", True),
    }


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
