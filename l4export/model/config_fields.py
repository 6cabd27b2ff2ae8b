"""Typed, bounded access to the fields of an untrusted JSON object that describes a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l4export.errors import InputError

__all__ = ["Fields", "show"]

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
_FLAGS = {"use_qk_norm": True, "attn_temperature_tuning": True, "tie_word_embeddings": False}


class Fields:
    """Typed, bounded access to one JSON object; `required` refuses absent keys instead of taking their default."""

    def __init__(self, raw: object, where: str, required: bool = False) -> None:
        if not isinstance(raw, Mapping):
            raise InputError(f"{where}: expected a JSON object, found {show(raw)}")
        self.raw, self.where, self.required = dict(raw), where, required

    def refuse(self, name: str, problem: str) -> InputError:
        """The error, to be raised, that says where, which field and what is wrong with it."""
        return InputError(f"{self.where}: {name} {problem}")

    def value(self, name: str, default: Any) -> Any:
        """The field as it is, or its default; `InputError` for one that is required and absent."""
        if self.required and name not in self.raw:
            raise self.refuse(name, "is missing")
        return self.raw.get(name, default)

    def typed(self, name: str, value: Any, kind: type, low: int = 0, high: int = 2**24) -> Any:
        """`value`, if it is an integer from `low` to `high`, or a boolean (`kind`); `InputError` otherwise.

        JSON does not distinguish 64.0 from 64, and some programs write one for the other.
        """
        if kind is int and type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not kind or (isinstance(value, int) and not low <= value <= high):
            wanted = f"an integer from {low} to {high}" if kind is int else "true or false"
            raise self.refuse(name, f"is {show(value)}; expected {wanted}")
        return value

    def integer(self, name: str) -> int:
        """An integer field that every model has, or transformers' default; `InputError` unless it is in its range."""
        default, low, high = _INTEGERS[name]
        value: int = self.typed(name, self.value(name, default), int, low, high)
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number above 0 (or 0 for `attn_scale`) as a float; `InputError` otherwise."""
        value = self.value(name, default)
        zero_ok = name == "attn_scale"  # no temperature; the other numbers are divisors and bases
        if type(value) not in (int, float) or not (0 < value < 1e30 or (zero_ok and value == 0)):
            raise self.refuse(name, f"is {show(value)}; expected a finite number above 0")
        return float(value)

    def array(self, name: str, kind: type) -> list[Any]:
        """A list whose items are all of `kind`, as `typed` has it; `InputError` otherwise."""
        value = self.value(name, None)
        if not isinstance(value, list):
            raise self.refuse(name, f"is {show(value)}; expected an array")
        return [self.typed(f"{name}[{i}]", item, kind) for i, item in enumerate(value)]

    def common(self) -> dict[str, Any]:
        """The fields that config.json and a manifest spell in the same way."""
        values: dict[str, Any] = {name: self.integer(name) for name in _INTEGERS}
        for name, (default, low, high) in _OPTIONAL.items():
            value = self.value(name, default)
            values[name] = None if value is None else self.typed(name, value, int, low, high)
        values |= {name: self.number(name, default) for name, default in _NUMBERS.items()}
        values |= {name: self.typed(name, self.value(name, default), bool) for name, default in _FLAGS.items()}
        return values | {"eos_token_ids": tuple(self.array("eos_token_ids", int))}


def show(value: object) -> str:
    """A value for a message: short, and on one line whatever it holds."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "an array"
    if isinstance(value, int) and abs(value) >= 2**64:
        return "an enormous integer"
    return "null" if value is None else repr(value)[:60]
