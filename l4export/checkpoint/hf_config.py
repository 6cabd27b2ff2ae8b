"""Reads the config.json files of transformers 4 and 5 for Llama 4 text models into a `ModelConfig`.

Fields that decide what is computed are read as transformers reads them. Others do not matter: names of classes,
quantisation (the tensors decide), tokens that the vocabulary does not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from l4export.checkpoint.hf_rope import rope_from_hf
from l4export.model.config import ModelConfig, checked
from l4export.model.config_fields import Fields, show

__all__ = ["config_from_hf", "possible_tokens", "text_config"]


def config_from_hf(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """The model of a config.json of transformers 4 or 5, text-only or multimodal.

    Raises:
        InputError: another architecture, or a field of a wrong type, range or spelling.
    """
    text = _text_fields(raw, where)
    layers = text.integer("num_hidden_layers")
    rope, chunked, moe = _rope_layers(text, layers), _chunked_layers(text, layers), _moe_layers(text, layers)
    chunked = rope if chunked is None else chunked
    _forget_unused(text, rope, chunked, moe)
    values = text.common()
    if not values["floor_scale"].is_integer():
        raise text.refuse("floor_scale", f"is {values['floor_scale']}; expected a whole number of tokens")
    if values["attention_chunk_size"] is None:
        chunked = (False,) * layers
    theta, scaling = rope_from_hf(text, values["max_position_embeddings"], values["head_dim"])
    values |= {"moe_layers": moe, "rope_layers": rope, "chunked_layers": chunked}
    return checked(ModelConfig(**values, rope_theta=theta, rope_scaling=scaling), text)


def text_config(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text model's object in a config.json that `config_from_hf` reads."""
    text: Mapping[str, Any] = raw["text_config"] if raw["model_type"] == "llama4" else raw
    return text


def possible_tokens(fields: Fields, name: str, ids: Sequence[Any], vocab_size: int) -> list[int]:
    """The token ids of a field that a vocabulary has. Other ids, such as -1 for "none", cannot occur.

    Raises:
        InputError: one is no integer.
    """
    whole = [fields.typed(name, token, int, -(2**63), 2**63) for token in ids]
    return [token for token in whole if 0 <= token < vocab_size]


def _text_fields(raw: object, where: str) -> Fields:
    """The text config of a config.json, with the spellings of different transformers versions made one."""
    top = Fields(raw, where)
    text = top
    if (kind := top.value("model_type", None)) == "llama4":
        text = Fields(top.value("text_config", None), f"{where}: text_config")
        kind = text.value("model_type", "llama4_text")
    if kind != "llama4_text":
        raise text.refuse("model_type", f"is {show(kind)}; only llama4 and llama4_text can be compiled")
    if (act := text.value("hidden_act", "silu")) not in ("silu", "swish"):  # two names of one function
        raise text.refuse("hidden_act", f"is {show(act)}; only 'silu' is supported")
    # No checkpoint with biases is known, and every lowering would need a second form of every projection.
    if (bias := text.value("attention_bias", False)) is not False and bias is not None:
        raise text.refuse("attention_bias", f"is {show(bias)}; projections with biases are not supported")
    if text.value("per_layer_config", None):
        raise text.refuse("per_layer_config", "is set; layers of different widths are not supported")
    if isinstance(tuning := text.raw.get("attn_temperature_tuning"), int | float):
        text.raw["attn_temperature_tuning"] = bool(tuning)  # files of the first release say 4 where they mean true
    _read_tokens(text, top)
    heads = text.integer("num_attention_heads")
    for name, meaning in {
        "num_key_value_heads": heads,
        "head_dim": text.integer("hidden_size") // heads,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
    }.items():
        if name in text.raw and text.raw[name] is None:
            text.raw[name] = meaning
    return text


def _read_tokens(text: Fields, top: Fields) -> None:
    """Special tokens, of the text config or, where it has none, of the whole one.

    Not tie_word_embeddings: transformers takes it from the text config alone.
    """
    vocab = text.integer("vocab_size")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given = top.raw.get(name) if text.raw.get(name) is None else text.raw[name]
        listed = name == "eos_token_id" and isinstance(given, list)
        ids = possible_tokens(text, name, [] if given is None else given if listed else [given], vocab)
        if name == "eos_token_id":
            text.raw["eos_token_ids"] = ids
        else:
            text.raw[name] = ids[0] if ids else None


def _forget_unused(text: Fields, rope: Sequence[bool], chunked: Sequence[bool], moe: Sequence[int]) -> None:
    """Treat null and 0 as absent in fields that no layer uses."""
    no_temperature = all(rope) or text.raw.get("attn_temperature_tuning") is False
    unused = {
        "intermediate_size": not moe,
        "intermediate_size_mlp": len(moe) == len(rope),
        "floor_scale": no_temperature,
        "attn_scale": no_temperature,
    }
    for name, is_unused in unused.items():
        if is_unused and text.raw.get(name) in (None, 0):
            text.raw.pop(name, None)
    if not any(chunked) and text.raw.get("attention_chunk_size") == 0:
        text.raw["attention_chunk_size"] = None


def _moe_layers(text: Fields, layers: int) -> tuple[int, ...]:
    """`moe_layers` where given, else every `interleave_moe_layer_step`-th layer; a step of 0 means none.

    A list may name layers twice, and layers that the model does not have: a model that was cut keeps its list.
    """
    if text.value("moe_layers", None) is not None:
        return tuple(sorted({layer for layer in text.array("moe_layers", int) if layer < layers}))
    step = text.value("interleave_moe_layer_step", 1)
    step = text.typed("interleave_moe_layer_step", 0 if step is None else step, int)
    dense = step == 0 or text.value("num_local_experts", 16) == 0
    return () if dense else tuple(range(step - 1, layers, step))


def _rope_layers(text: Fields, layers: int) -> tuple[bool, ...]:
    """`no_rope_layers` (1 = RoPE), else all but every `no_rope_layer_interval`-th layer; an interval of 0 means all.

    Entries beyond the last layer mean nothing, as transformers documents.
    """
    if text.value("no_rope_layers", None) not in (None, []):
        flags = text.array("no_rope_layers", int)[:layers]
        if bad := [flag for flag in flags if flag not in (0, 1)]:
            raise text.refuse("no_rope_layers", f"contains {bad[0]}; expected only 0 and 1")
        return tuple(flag == 1 for flag in flags)
    interval = text.value("no_rope_layer_interval", 4)
    interval = text.typed("no_rope_layer_interval", 0 if interval is None else interval, int)
    return tuple(interval == 0 or (layer + 1) % interval != 0 for layer in range(layers))


def _chunked_layers(text: Fields, layers: int) -> tuple[bool, ...] | None:
    """`layer_types`, without entries beyond the last layer; None: chunked attention exactly where RoPE is used."""
    types = text.value("layer_types", None)
    if types is None:
        return None
    if not isinstance(types, list):
        raise text.refuse("layer_types", f"is {show(types)}; expected an array")
    known = ("chunked_attention", "full_attention")
    if bad := [word for word in types[:layers] if word not in known]:
        raise text.refuse("layer_types", f"contains {show(bad[0])}; expected only {' and '.join(known)}")
    return tuple(word == known[0] for word in types[:layers])
