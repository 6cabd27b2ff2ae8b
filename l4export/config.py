"""The text model's configuration, read from a Hugging Face config.json or from an engine's manifest.

Both are untrusted: every value is checked for type and range, and every refusal is one line that names the field.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from l4export.errors import InputError

__all__ = ["ModelConfig", "ParameterCount", "RopeScaling"]

# name -> (default of transformers' Llama4TextConfig, lowest, highest accepted value)
_INTEGERS: dict[str, tuple[int, int, int]] = {
    "vocab_size": (202048, 1, 2**24),
    "hidden_size": (5120, 1, 2**20),
    "intermediate_size": (8192, 1, 2**20),
    "intermediate_size_mlp": (16384, 1, 2**20),
    "num_hidden_layers": (48, 1, 1024),
    "num_attention_heads": (40, 1, 2**16),
    "num_key_value_heads": (8, 1, 2**16),
    "head_dim": (128, 2, 2**16),
    "num_local_experts": (16, 0, 4096),
    "num_experts_per_tok": (1, 0, 4096),
    "max_position_embeddings": (131072, 1, 2**40),
}
_OPTIONAL: dict[str, tuple[int | None, int, int]] = {
    "attention_chunk_size": (8192, 1, 2**40),
    "bos_token_id": (None, 0, 2**24),
    "pad_token_id": (None, 0, 2**24),
}
_NUMBERS = {"rms_norm_eps": 1e-5, "floor_scale": 8192.0, "attn_scale": 0.1}
_ARCHITECTURES = ("Llama4ForCausalLM", "Llama4ForConditionalGeneration")
_FLAGS = {"use_qk_norm": True, "attn_temperature_tuning": True, "tie_word_embeddings": False}


@dataclass(frozen=True)
class RopeScaling:
    """Parameters of the `llama3` frequency scaling; see `ModelConfig.inv_freq`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of the text model: all of them, and those that one token uses."""

    total: int
    active: int


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and switches of a Llama 4 text model, with every per-layer choice spelled out.

    `rope_layers[l]` is Hugging Face's `no_rope_layers[l] == 1` (that name is inverted); `chunked_layers[l]` is
    `layer_types[l] == "chunked_attention"`. The two lists are independent. `attention_chunk_size` None means
    plain causal attention everywhere; `chunked_layers` are then all False.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    intermediate_size_mlp: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_local_experts: int
    num_experts_per_tok: int
    moe_layers: tuple[int, ...]
    rope_layers: tuple[bool, ...]
    chunked_layers: tuple[bool, ...]
    attention_chunk_size: int | None
    use_qk_norm: bool
    rms_norm_eps: float
    attn_temperature_tuning: bool
    floor_scale: float
    attn_scale: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], where: str) -> ModelConfig:
        """Reads a config.json of transformers 4 or 5, text-only (`llama4_text`) or multimodal (`llama4`).

        Keys that are absent take the defaults of transformers' `Llama4TextConfig`. Raises `InputError`, naming
        `where` and the field, for anything that is not a Llama 4 text model this package can compile.
        """
        text = _hf_text(raw, where)
        values = text.common()
        layers: int = values["num_hidden_layers"]
        rope_layers = _hf_rope_layers(text, layers)
        theta, scaling = _hf_rope(text, values["max_position_embeddings"])
        chunked = _hf_chunked_layers(text, rope_layers)
        if values["attention_chunk_size"] is None:
            chunked = (False,) * len(chunked)
        config = cls(
            **values,
            moe_layers=_hf_moe_layers(text, layers),
            rope_layers=rope_layers,
            chunked_layers=chunked,
            rope_theta=theta,
            rope_scaling=scaling,
        )
        return _checked(config, text)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str) -> ModelConfig:
        """The inverse of `to_dict`; every field must be there, and unknown ones are refused (`InputError`)."""
        data = _Fields(raw, where, required=True)
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := [name for name in data.raw if name not in names]:
            raise data.refuse(_show(unknown[0]), "is not a field of a model config; build the engine again")
        scaling = data.value("rope_scaling", None)
        config = cls(
            **data.common(),
            moe_layers=tuple(data.array("moe_layers", int)),
            rope_layers=tuple(data.array("rope_layers", bool)),
            chunked_layers=tuple(data.array("chunked_layers", bool)),
            rope_theta=data.number("rope_theta", 0.0),
            rope_scaling=None if scaling is None else _llama3(_Fields(scaling, f"{where}: rope_scaling", True)),
        )
        return _checked(config, data)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, in the order of their declaration."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    def is_moe(self, layer: int) -> bool:
        """Whether the feed-forward block of `layer` is a mixture of experts."""
        return layer in self.moe_layers

    def inv_freq(self) -> np.ndarray:
        """RoPE's inverse frequencies, radians per position: float64 [head_dim / 2].

        f_i = theta^(-2i/d) [Su et al. 2021, arXiv:2104.09864]. The llama3 scaling [transformers,
        modeling_rope_utils.py; Meta, llama-models] divides by `factor` where the wavelength 2π/f_i exceeds
        original / low_freq_factor, keeps f_i where it is below original / high_freq_factor, and between them gives
        f_i · ((1 - s) / factor + s) with s = (original / wavelength - low) / (high - low).
        """
        freq = self.rope_theta ** (-np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim)
        if self.rope_scaling is None:
            return freq
        low, high = self.rope_scaling.low_freq_factor, self.rope_scaling.high_freq_factor
        turns = self.rope_scaling.original_max_position_embeddings * freq / (2 * math.pi)  # original / wavelength
        # Scout ships low == high: there is no middle band, only a step.
        smooth = np.clip((turns - low) / (high - low), 0.0, 1.0) if high > low else (turns >= low).astype(np.float64)
        return freq * ((1 - smooth) / self.rope_scaling.factor + smooth)

    def parameter_count(self) -> ParameterCount:
        """Parameters of the text model: in total, and those one token uses (k experts, shared expert, head)."""
        hidden, kv = self.hidden_size, self.num_key_value_heads * self.head_dim
        attention = 2 * hidden * self.num_attention_heads * self.head_dim + 2 * hidden * kv
        expert = 3 * hidden * self.intermediate_size
        moe = len(self.moe_layers)
        embeddings = (1 if self.tie_word_embeddings else 2) * self.vocab_size * hidden
        common = self.num_hidden_layers * (attention + 2 * hidden) + embeddings + hidden
        common += (self.num_hidden_layers - moe) * 3 * hidden * self.intermediate_size_mlp
        common += moe * (expert + hidden * self.num_local_experts)  # shared expert and router
        return ParameterCount(
            total=common + moe * expert * self.num_local_experts,
            active=common + moe * expert * self.num_experts_per_tok,
        )


class _Fields:
    """Typed, bounded access to one JSON object; `required` refuses absent keys instead of taking their default."""

    def __init__(self, raw: object, where: str, required: bool = False) -> None:
        if not isinstance(raw, Mapping):
            raise InputError(f"{where}: expected a JSON object, found {_show(raw)}")
        self.raw, self.where, self.required = dict(raw), where, required

    def refuse(self, name: str, problem: str) -> InputError:
        return InputError(f"{self.where}: {name} {problem}")

    def value(self, name: str, default: Any) -> Any:
        if self.required and name not in self.raw:
            raise self.refuse(name, "is missing")
        return self.raw.get(name, default)

    def typed(self, name: str, value: Any, kind: type, low: int = 0, high: int = 2**24) -> Any:
        if type(value) is not kind or (isinstance(value, int) and not low <= value <= high):
            wanted = f"an integer from {low} to {high}" if kind is int else "true or false"
            raise self.refuse(name, f"is {_show(value)}; expected {wanted}")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.value(name, default)
        zero_ok = name == "attn_scale"  # no temperature; the other numbers are divisors and bases
        if type(value) not in (int, float) or not (0 < value < 1e30 or (zero_ok and value == 0)):
            raise self.refuse(name, f"is {_show(value)}; expected a finite number above 0")
        return float(value)

    def array(self, name: str, kind: type) -> list[Any]:
        value = self.value(name, None)
        if not isinstance(value, list):
            raise self.refuse(name, f"is {_show(value)}; expected an array")
        return [self.typed(f"{name}[{i}]", item, kind) for i, item in enumerate(value)]

    def common(self) -> dict[str, Any]:
        """The fields that config.json and a manifest spell in the same way."""
        values: dict[str, Any] = {}
        for name, (default, low, high) in (_INTEGERS | _OPTIONAL).items():
            value = self.value(name, default)
            null = value is None and name in _OPTIONAL
            values[name] = None if null else self.typed(name, value, int, low, high)
        values |= {name: self.number(name, default) for name, default in _NUMBERS.items()}
        values |= {name: self.typed(name, self.value(name, default), bool) for name, default in _FLAGS.items()}
        return values | {"eos_token_ids": tuple(self.array("eos_token_ids", int))}


def _show(value: object) -> str:
    """A value for a message: short, and on one line whatever it holds."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "an array"
    if isinstance(value, int) and abs(value) >= 2**64:
        return "an enormous integer"
    return "null" if value is None else repr(value)[:60]


def _hf_text(raw: object, where: str) -> _Fields:
    """The text config of a config.json, with the spellings of different transformers versions made one."""
    top = _Fields(raw, where)
    text = top
    if (kind := top.value("model_type", None)) == "llama4":
        text = _Fields(top.value("text_config", None), f"{where}: text_config")
        kind = text.value("model_type", "llama4_text")
    if kind != "llama4_text":
        raise text.refuse("model_type", f"is {_show(kind)}; only llama4 and llama4_text can be compiled")
    names = top.value("architectures", None)
    if names is not None and not (isinstance(names, list) and any(n in _ARCHITECTURES for n in names)):
        shown = _show(names[0]) if isinstance(names, list) and names else _show(names)
        raise top.refuse("architectures", f"is {shown}; only {' and '.join(_ARCHITECTURES)} can be compiled")
    if any(fields.raw.get("quantization_config") is not None for fields in (top, text)):
        raise top.refuse("quantization_config", "is present: a quantised checkpoint is not supported; use the bf16 one")
    for name, wanted in (("hidden_act", "silu"), ("attention_bias", False)):
        if (value := text.value(name, wanted)) != wanted or type(value) is not type(wanted):
            raise text.refuse(name, f"is {_show(value)}; only {wanted!r} is supported")
    for name in ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"):
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


def _hf_moe_layers(text: _Fields, layers: int) -> tuple[int, ...]:
    """`moe_layers` where given, else every `interleave_moe_layer_step`-th layer; a step of 0 means none."""
    if text.value("moe_layers", None) is not None:
        return tuple(text.array("moe_layers", int))
    step = text.value("interleave_moe_layer_step", 1)
    step = text.typed("interleave_moe_layer_step", 0 if step is None else step, int)
    dense = step == 0 or text.value("num_local_experts", 16) == 0
    return () if dense else tuple(range(step - 1, layers, step))


def _hf_rope_layers(text: _Fields, layers: int) -> tuple[bool, ...]:
    """`no_rope_layers` (1 = RoPE), else all but every `no_rope_layer_interval`-th layer; an interval of 0 means all."""
    if text.value("no_rope_layers", None) not in (None, []):
        flags = text.array("no_rope_layers", int)
        if bad := [flag for flag in flags if flag not in (0, 1)]:
            raise text.refuse("no_rope_layers", f"contains {bad[0]}; expected only 0 and 1")
        return tuple(flag == 1 for flag in flags)
    interval = text.value("no_rope_layer_interval", 4)
    interval = text.typed("no_rope_layer_interval", 0 if interval is None else interval, int)
    return tuple(interval == 0 or (layer + 1) % interval != 0 for layer in range(layers))


def _hf_chunked_layers(text: _Fields, rope_layers: tuple[bool, ...]) -> tuple[bool, ...]:
    """`layer_types` where given, else chunked attention exactly where RoPE is used."""
    types = text.value("layer_types", None)
    if types is None:
        return rope_layers
    if not isinstance(types, list):
        raise text.refuse("layer_types", f"is {_show(types)}; expected an array")
    known = ("chunked_attention", "full_attention")
    if bad := [word for word in types if word not in known]:
        raise text.refuse("layer_types", f"contains {_show(bad[0])}; expected only {' and '.join(known)}")
    return tuple(word == known[0] for word in types)


def _hf_rope(text: _Fields, max_positions: int) -> tuple[float, RopeScaling | None]:
    """Theta and scaling from `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta` (4)."""
    name = "rope_scaling" if text.value("rope_scaling", None) is not None else "rope_parameters"
    given = text.value(name, None)
    rope = _Fields({} if given is None else given, f"{text.where}: {name}")
    theta = (rope if "rope_theta" in rope.raw else text).number("rope_theta", 500000.0)
    kind = rope.value("rope_type", rope.value("type", None if "factor" in rope.raw else "default"))
    if kind not in ("default", "llama3") or any(isinstance(value, Mapping) for value in rope.raw.values()):
        raise rope.refuse("rope_type", f"is {_show(kind)}; expected 'default' or 'llama3', one for all layers")
    if rope.value("partial_rotary_factor", None) not in (None, 1):
        raise rope.refuse("partial_rotary_factor", "is not 1; rotation of a part of the head is not supported")
    rope.raw.setdefault("original_max_position_embeddings", max_positions)
    rope.required = True
    return theta, _llama3(rope) if kind == "llama3" else None


def _llama3(rope: _Fields) -> RopeScaling:
    original = rope.value("original_max_position_embeddings", None)
    return RopeScaling(
        factor=rope.number("factor", 0.0),
        low_freq_factor=rope.number("low_freq_factor", 0.0),
        high_freq_factor=rope.number("high_freq_factor", 0.0),
        original_max_position_embeddings=rope.typed("original_max_position_embeddings", original, int, 1, 2**40),
    )


def _checked(config: ModelConfig, fields: _Fields) -> ModelConfig:
    """Refuses values that are fine one by one and contradict each other."""
    c, layers, moe = config, config.num_hidden_layers, config.moe_layers
    ids = [c.bos_token_id, *c.eos_token_ids, c.pad_token_id]
    rules = [
        (c.num_attention_heads % c.num_key_value_heads, "num_key_value_heads", "must divide num_attention_heads"),
        (c.head_dim % 2, "head_dim", f"is {c.head_dim}; RoPE needs an even one"),
        (len(c.rope_layers) != layers, "no_rope_layers (rope_layers)", f"must have {layers} entries, one a layer"),
        (len(c.chunked_layers) != layers, "layer_types (chunked_layers)", f"must have {layers} entries, one a layer"),
        (max(moe, default=0) >= layers, "moe_layers", f"names layer {max(moe, default=0)} of {layers} (from 0)"),
        (len(set(moe)) < len(moe), "moe_layers", "names a layer twice"),
        (moe and not c.num_local_experts, "num_local_experts", "is 0, but moe_layers names layers"),
        (
            moe and not 1 <= c.num_experts_per_tok <= c.num_local_experts,
            "num_experts_per_tok",
            f"is {c.num_experts_per_tok}; expected 1 to {c.num_local_experts}, the number of experts",
        ),
        (
            c.attention_chunk_size is None and any(c.chunked_layers),
            "attention_chunk_size",
            "is null, but chunked_layers names layers",
        ),
        (
            any(token is not None and token >= c.vocab_size for token in ids),
            "bos_token_id, eos_token_id or pad_token_id",
            f"is outside the vocabulary of {c.vocab_size} tokens",
        ),
    ]
    for broken, name, problem in rules:
        if broken:
            raise fields.refuse(name, problem)
    return config
