"""Reads Meta's params.json for Llama 4 into the fields of a config.json, which are then read and checked as one.

Names, defaults and widths are those of Meta's own program [llama-models, models/llama4/args.py, model.py, moe.py].
Three things are not in the file: the special tokens, of which Llama 4's tokenizer has 2048 behind all others; the
original context of scaled RoPE, 8192; and the longest context, for which the figure that Meta states for the instructed
models stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l4export.model.config_fields import Fields, show

__all__ = ["hf_config_of_params"]

_VOCABULARY = 202048
_SPECIAL_TOKENS = 2048
_BEGIN, _STOPS, _PAD, _PATCH = 0, (1, 7, 8), 18, 92  # begin of text; end of text, message and turn; padding; image
_ORIGINAL_CONTEXT = 8192
_SCOUT_EXPERTS, _SCOUT_CONTEXT, _MAVERICK_CONTEXT, _DENSE_CONTEXT = 16, 10485760, 1048576, 8192


def hf_config_of_params(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config.json that says what a params.json says, multimodal if it has `vision_args`.

    Raises:
        InputError: a field that is missing, of a wrong type or range, or that another model computes with.
    """
    fields = Fields(raw.get("model", raw), where)
    _refuse_others(fields)
    text = {"model_type": "llama4_text", **_text(fields), **_feed_forward(fields)}
    first = text["vocab_size"] - _SPECIAL_TOKENS
    text |= {"bos_token_id": first + _BEGIN, "eos_token_id": [first + stop for stop in _STOPS]}
    text["pad_token_id"] = first + _PAD
    if fields.value("vision_args", None) is None:
        return {"architectures": ["Llama4ForCausalLM"], **text}
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "text_config": text,
        "vision_config": _vision(Fields(fields.raw["vision_args"], f"{where}: vision_args")),
        "image_token_index": first + _PATCH,
    }


def _refuse_others(fields: Fields) -> None:
    """Refuse what changes the computation and is no Llama 4: adapters, rotated weights."""
    if fields.value("lora_args", None) is not None:
        raise fields.refuse("lora_args", "is set; adapters in Meta's layout are not read")
    quantization = fields.value("quantization_args", None) or {}
    if isinstance(quantization, Mapping) and (quantization.get("spinquant") or quantization.get("scheme")):
        raise fields.refuse("quantization_args", "names a scheme; only the scales of FP8 and INT4 experts are read")


def _integer(fields: Fields, name: str, default: int | None = None, low: int = 1) -> int:
    """An integer that must be there if it has no default."""
    value = fields.value(name, None)
    if value is None:
        if default is None:
            raise fields.refuse(name, "is missing")
        value = default
    found: int = fields.typed(name, value, int, low, 2**24)
    return found


def _text(fields: Fields) -> dict[str, Any]:
    """Everything but the feed-forward layers."""
    hidden, heads = _integer(fields, "dim"), _integer(fields, "n_heads")
    if hidden % heads or _integer(fields, "head_dim", hidden // heads) != hidden // heads:
        raise fields.refuse("n_heads", f"is {heads}; Llama 4's heads have dim / n_heads channels")
    vocabulary = _integer(fields, "vocab_size", -1, low=-1)
    rope = {"rope_type": "default", "rope_theta": fields.number("rope_theta", 500000.0)}
    if fields.typed("use_scaled_rope", fields.value("use_scaled_rope", False), bool):
        factors = {"rope_scaling_factor": 16.0, "rope_high_freq_factor": 1.0}
        factor, high = (_number(fields, name, default) for name, default in factors.items())
        rope |= {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": high}
        rope |= {"original_max_position_embeddings": _ORIGINAL_CONTEXT}
    return {
        "hidden_size": hidden,
        "num_hidden_layers": _integer(fields, "n_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": _integer(fields, "n_kv_heads", heads),
        "head_dim": hidden // heads,
        "vocab_size": _VOCABULARY if vocabulary == -1 else vocabulary,
        "rms_norm_eps": fields.number("norm_eps", 1e-5),
        "attention_chunk_size": fields.value("attention_chunk_size", None),
        "no_rope_layer_interval": _integer(fields, "nope_layer_interval", 0, low=0),
        "use_qk_norm": fields.typed("use_qk_norm", fields.value("use_qk_norm", False), bool),
        "attn_temperature_tuning": bool(fields.value("attn_temperature_tuning", False)),
        "floor_scale": fields.number("floor_scale", 8192.0),
        "attn_scale": fields.number("attn_scale", 0.1),
        "rope_parameters": rope,
        "tie_word_embeddings": False,
    }


def _number(fields: Fields, name: str, default: float) -> float:
    return default if fields.value(name, None) is None else fields.number(name, default)


def _required(fields: Fields, name: str) -> float:
    if fields.value(name, None) is None:
        raise fields.refuse(name, "is missing")
    return fields.number(name, 0.0)


def _feed_forward(fields: Fields) -> dict[str, Any]:
    """Widths of dense layers and experts, and which layers have experts."""
    hidden, multiple = _integer(fields, "dim"), _integer(fields, "multiple_of", 256)
    multiplier = _number(fields, "ffn_dim_multiplier", 1.0)
    found: dict[str, Any] = {
        "intermediate_size_mlp": _rounded_up(int(multiplier * int(2 * (4 * hidden) / 3)), multiple),
        "hidden_act": "silu",
    }
    if fields.value("moe_args", None) is None:
        return {**found, "num_local_experts": 0, "moe_layers": [], "max_position_embeddings": _DENSE_CONTEXT}
    moe = Fields(fields.raw["moe_args"], f"{fields.where}: moe_args")
    experts = _integer(moe, "num_experts")
    inner = int(multiplier * int(2 * int(_required(fields, "ffn_exp") * hidden) / 3))
    if moe.typed("auto_scale_F", moe.value("auto_scale_F", True), bool):
        inner = int(inner / (moe.number("capacity_factor", 1.0) + 1))
    return {
        **found,
        "intermediate_size": _rounded_up(inner, multiple),
        "num_local_experts": experts,
        "num_experts_per_tok": _integer(moe, "top_k", 1),
        "interleave_moe_layer_step": _integer(moe, "interleave_moe_layer_step", 1),
        "max_position_embeddings": _SCOUT_CONTEXT if experts == _SCOUT_EXPERTS else _MAVERICK_CONTEXT,
    }


def _rounded_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _vision(vision: Fields) -> dict[str, Any]:
    """The `vision_config` of `vision_args`."""
    hidden, output = _integer(vision, "dim"), _integer(vision, "output_dim")
    return {
        "model_type": "llama4_vision_model",
        "hidden_size": hidden,
        "intermediate_size": int(_required(vision, "mlp_ratio") * hidden),
        "num_hidden_layers": _integer(vision, "n_layers"),
        "num_attention_heads": _integer(vision, "n_heads"),
        "image_size": _side(vision, "image_size"),
        "patch_size": _side(vision, "patch_size"),
        "pixel_shuffle_ratio": _required(vision, "pixel_shuffle_ratio"),
        **dict.fromkeys(("projector_input_dim", "projector_output_dim", "vision_output_dim"), output),
    }


def _side(vision: Fields, name: str) -> int:
    """The side of a square."""
    size = Fields(vision.value(name, None), f"{vision.where}: {name}")
    height, width = _integer(size, "height"), _integer(size, "width")
    if height != width:
        raise vision.refuse(name, f"is {show(width)} wide and {show(height)} high; only squares are supported")
    return height
