"""Reads the `vision_config` of transformers' config.json files for Llama 4 into a `VisionConfig`.

Fields are read as transformers 5.23 reads them. It does not read `norm_eps` (1e-5 always), `multi_modal_projector_bias`
(there is none) and `vision_feature_select_strategy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l4export.checkpoint.hf_rope import theta_from_hf
from l4export.model.config_fields import Fields, show
from l4export.model.vision_config import VisionConfig, checked_vision

__all__ = ["vision_from_hf"]

# name -> (default of transformers' Llama4VisionConfig, lowest, highest accepted value)
_INTEGERS = {
    "hidden_size": (768, 4, 2**16),
    "intermediate_size": (5632, 1, 2**20),
    "num_hidden_layers": (34, 1, 1024),
    "num_attention_heads": (16, 1, 2**12),
    "image_size": (448, 1, 2**14),
    "patch_size": (14, 1, 2**12),
}
_PROJECTOR = {"projector_input_dim": 4096, "projector_output_dim": 4096, "vision_output_dim": 7680}
_IMAGE_TOKEN = 200092
_DEFAULT_THETA = 10000.0


def vision_from_hf(raw: Mapping[str, Any], where: str, vocab_size: int) -> VisionConfig:
    """The tower of a config.json of transformers 4 or 5, for a text model of `vocab_size` tokens.

    Raises:
        InputError: a field of a wrong type or range, or one that contradicts another; by its name.
    """
    top, vision = Fields(raw, where), Fields(raw.get("vision_config") or {}, f"{where}: vision_config")
    if (act := vision.value("hidden_act", "gelu")) != "gelu":
        raise vision.refuse("hidden_act", f"is {show(act)}; only 'gelu' is supported")
    if (channels := vision.value("num_channels", 3)) != 3:
        raise vision.refuse("num_channels", f"is {show(channels)}; images have 3")
    integers = {name: _integer(vision, name, *limits) for name, limits in _INTEGERS.items()}
    widths = {name: _integer(vision, name, default, 1, 2**20) for name, default in _PROJECTOR.items()}
    for name, width in widths.items():
        if width != widths["projector_input_dim"]:
            raise vision.refuse(name, f"is {width}; it must be projector_input_dim {widths['projector_input_dim']}")
    token = _integer(top, "image_token_index", _IMAGE_TOKEN, 0, 2**24)
    if token >= vocab_size:
        raise top.refuse("image_token_index", f"is {token}, outside the vocabulary of {vocab_size} tokens")
    config = VisionConfig(
        **integers,
        pixel_shuffle_ratio=vision.number("pixel_shuffle_ratio", 0.5),
        projector_size=widths["projector_input_dim"],
        rope_theta=theta_from_hf(vision, _DEFAULT_THETA),
        image_token_id=token,
    )
    return checked_vision(config, vision)


def _integer(fields: Fields, name: str, default: int, low: int, high: int) -> int:
    value: int = fields.typed(name, fields.value(name, default), int, low, high)
    return value
