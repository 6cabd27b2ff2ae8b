"""What the config.json files of transformers 4 and 5 say of a Llama 4 text model, in `ModelConfig`'s terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l4export.model.config import ModelConfig, RopeScaling, checked, llama3_scaling
from l4export.model.config_fields import Fields, show

__all__ = ["config_from_hf", "read_hf"]

_ARCHITECTURES = ("Llama4ForCausalLM", "Llama4ForConditionalGeneration")


def read_hf(raw: Mapping[str, Any], where: str) -> tuple[dict[str, Any], Fields]:
    """The values of `ModelConfig`'s fields, and the text config they were read from, for further complaints.

    Raises:
        InputError: another architecture, a quantised checkpoint, or a field of a wrong type, range or spelling.
    """
    text = _hf_text(raw, where)
    values = text.common()
    layers: int = values["num_hidden_layers"]
    rope_layers = _hf_rope_layers(text, layers)
    theta, scaling = _hf_rope(text, values["max_position_embeddings"])
    chunked = _hf_chunked_layers(text, rope_layers)
    if values["attention_chunk_size"] is None:
        chunked = (False,) * len(chunked)
    values |= {"moe_layers": _hf_moe_layers(text, layers), "rope_layers": rope_layers, "chunked_layers": chunked}
    return values | {"rope_theta": theta, "rope_scaling": scaling}, text


def _hf_text(raw: object, where: str) -> Fields:
    """The text config of a config.json, with the spellings of different transformers versions made one."""
    top = Fields(raw, where)
    text = top
    if (kind := top.value("model_type", None)) == "llama4":
        text = Fields(top.value("text_config", None), f"{where}: text_config")
        kind = text.value("model_type", "llama4_text")
    if kind != "llama4_text":
        raise text.refuse("model_type", f"is {show(kind)}; only llama4 and llama4_text can be compiled")
    names = top.value("architectures", None)
    if names is not None and not (isinstance(names, list) and any(n in _ARCHITECTURES for n in names)):
        shown = show(names[0]) if isinstance(names, list) and names else show(names)
        raise top.refuse("architectures", f"is {shown}; only {' and '.join(_ARCHITECTURES)} can be compiled")
    if any(fields.raw.get("quantization_config") is not None for fields in (top, text)):
        raise top.refuse("quantization_config", "is present: a quantised checkpoint is not supported; use the bf16 one")
    for name, wanted in (("hidden_act", "silu"), ("attention_bias", False)):
        if (value := text.value(name, wanted)) != wanted or type(value) is not type(wanted):
            raise text.refuse(name, f"is {show(value)}; only {wanted!r} is supported")
    # Not tie_word_embeddings: transformers takes it from the text config alone.
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if text.raw.get(name) is None and top.raw.get(name) is not None:
            text.raw[name] = top.raw[name]
    eos = text.raw.get("eos_token_id")
    text.raw["eos_token_ids"] = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if isinstance(tuning := text.raw.get("attn_temperature_tuning"), int | float):
        text.raw["attn_temperature_tuning"] = bool(tuning)  # files of the first release say 4 where they mean true
    heads = text.typed("num_attention_heads", text.value("num_attention_heads", 40), int, 1, 2**16)
    hidden = text.typed("hidden_size", text.value("hidden_size", 5120), int, 1, 2**20)
    nulls = {
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
    }
    for name, meaning in nulls.items():
        if name in text.raw and text.raw[name] is None:
            text.raw[name] = meaning
    return text


def _hf_moe_layers(text: Fields, layers: int) -> tuple[int, ...]:
    """`moe_layers` where given, else every `interleave_moe_layer_step`-th layer; a step of 0 means none."""
    if text.value("moe_layers", None) is not None:
        return tuple(text.array("moe_layers", int))
    step = text.value("interleave_moe_layer_step", 1)
    step = text.typed("interleave_moe_layer_step", 0 if step is None else step, int)
    dense = step == 0 or text.value("num_local_experts", 16) == 0
    return () if dense else tuple(range(step - 1, layers, step))


def _hf_rope_layers(text: Fields, layers: int) -> tuple[bool, ...]:
    """`no_rope_layers` (1 = RoPE), else all but every `no_rope_layer_interval`-th layer; an interval of 0 means all."""
    if text.value("no_rope_layers", None) not in (None, []):
        flags = text.array("no_rope_layers", int)
        if bad := [flag for flag in flags if flag not in (0, 1)]:
            raise text.refuse("no_rope_layers", f"contains {bad[0]}; expected only 0 and 1")
        return tuple(flag == 1 for flag in flags)
    interval = text.value("no_rope_layer_interval", 4)
    interval = text.typed("no_rope_layer_interval", 0 if interval is None else interval, int)
    return tuple(interval == 0 or (layer + 1) % interval != 0 for layer in range(layers))


def _hf_chunked_layers(text: Fields, rope_layers: tuple[bool, ...]) -> tuple[bool, ...]:
    """`layer_types` where given, else chunked attention exactly where RoPE is used."""
    types = text.value("layer_types", None)
    if types is None:
        return rope_layers
    if not isinstance(types, list):
        raise text.refuse("layer_types", f"is {show(types)}; expected an array")
    known = ("chunked_attention", "full_attention")
    if bad := [word for word in types if word not in known]:
        raise text.refuse("layer_types", f"contains {show(bad[0])}; expected only {' and '.join(known)}")
    return tuple(word == known[0] for word in types)


def _hf_rope(text: Fields, max_positions: int) -> tuple[float, RopeScaling | None]:
    """Theta and scaling from `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` (4)."""
    name = "rope_scaling" if text.value("rope_scaling", None) is not None else "rope_parameters"
    given = text.value(name, None)
    rope = Fields({} if given is None else given, f"{text.where}: {name}")
    theta = (rope if "rope_theta" in rope.raw else text).number("rope_theta", 500000.0)
    kind = rope.value("rope_type", rope.value("type", None if "factor" in rope.raw else "default"))
    if kind not in ("default", "llama3") or any(isinstance(value, Mapping) for value in rope.raw.values()):
        raise rope.refuse("rope_type", f"is {show(kind)}; expected 'default' or 'llama3', one for all layers")
    if rope.value("partial_rotary_factor", None) not in (None, 1):
        raise rope.refuse("partial_rotary_factor", "is not 1; rotation of a part of the head is not supported")
    rope.raw.setdefault("original_max_position_embeddings", max_positions)
    rope.required = True
    return theta, llama3_scaling(rope) if kind == "llama3" else None


def config_from_hf(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """The model of a config.json of transformers 4 or 5, text-only or multimodal."""
    values, fields = read_hf(raw, where)
    return checked(ModelConfig(**values), fields)
