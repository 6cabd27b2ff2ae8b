"""What transformers 5 refuses in a config.json that others take: numbers of other kinds, nulls, lists too long.

It checks the type of every field. Configs of the first release say `attn_temperature_tuning: 4` and `floor_scale:
8192.0`, and lists by layer are left as they were where layers are cut. l4export reads them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l4export.checkpoint.hf_rope import KEYS
from l4export.model.config import ModelConfig

__all__ = ["fields_by_layer", "strict_fields"]


def strict_fields(text: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The fields of a text config that transformers would refuse, with what l4export read of them in `config`."""
    plain = {name: value for name, value in config.to_dict().items() if not isinstance(value, list | dict)}
    plain |= {"floor_scale": int(config.floor_scale)}
    found = {
        name: value
        for name, value in plain.items()
        if name not in KEYS and name in text and type(text[name]) is not type(value)
    }
    if type(text.get("use_cache", True)) is not bool:  # which changes nothing
        found["use_cache"] = True
    if not _are_lists_plain(text, config.num_hidden_layers) or not config.moe_layers:
        found |= fields_by_layer(config)
    return found


def fields_by_layer(config: ModelConfig) -> dict[str, Any]:
    """The fields for every layer, spelled out as transformers has them."""
    kinds = {True: "chunked_attention", False: "full_attention"}
    return {
        "num_hidden_layers": config.num_hidden_layers,
        "moe_layers": list(config.moe_layers),
        "no_rope_layers": [int(flag) for flag in config.rope_layers],
        "layer_types": [kinds[flag] for flag in config.chunked_layers],
        "no_rope_layer_interval": 1,  # unused beside the lists, but transformers divides by both
        "interleave_moe_layer_step": 1,
    }


def _are_lists_plain(text: Mapping[str, Any], layers: int) -> bool:
    """Whether transformers accepts what a text config says about each layer."""
    for name in ("no_rope_layer_interval", "interleave_moe_layer_step"):
        if type(text.get(name, 1)) is not int or text.get(name) == 0:
            return False
    for name in ("moe_layers", "no_rope_layers", "layer_types"):
        entries = text.get(name) or []
        one_a_layer = name == "moe_layers" or not entries or len(entries) == layers
        if not one_a_layer or any(type(entry) is float for entry in entries):
            return False
    return True
