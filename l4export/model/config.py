"""The text model's configuration, read from a Hugging Face config.json or from an engine's manifest.

Both are untrusted: every value is checked for type and range, and every refusal is one line that names the field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.errors import InputError
from l4export.model.config_fields import Fields
from l4export.model.rope import RopeScaling, YarnScaling, frequencies, read_scaling

__all__ = ["ModelConfig", "checked"]


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
    def from_dict(cls, raw: Mapping[str, Any], where: str) -> ModelConfig:
        """The inverse of `to_dict`; every field must be there (`InputError`), and unknown ones are ignored."""
        data = Fields(raw, where, required=True)
        scaling = data.value("rope_scaling", None)
        config = cls(
            **data.common(),
            moe_layers=tuple(data.array("moe_layers", int)),
            rope_layers=tuple(data.array("rope_layers", bool)),
            chunked_layers=tuple(data.array("chunked_layers", bool)),
            rope_theta=data.number("rope_theta", 0.0),
            rope_scaling=None if scaling is None else read_scaling(Fields(scaling, f"{where}: rope_scaling", True)),
        )
        return checked(config, data)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, in the order of their declaration."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    def is_moe(self, layer: int) -> bool:
        """Whether the feed-forward block of `layer` is a mixture of experts."""
        return layer in self.moe_layers

    def slice_layers(self, start: int, stop: int) -> ModelConfig:
        """The model made of layers start .. stop - 1 alone, numbered from 0; embedding, final norm and head stay.

        Raises:
            InputError: no layer is in the slice, or one that the model does not have.
        """
        if not 0 <= start < stop <= self.num_hidden_layers:
            have = f"the model has layers 0 to {self.num_hidden_layers - 1}"
            empty = "no layer is in this slice; " if stop <= start else ""
            raise InputError(f"--layers {start}:{stop}: {empty}{have}")
        return self.with_layers(range(start, stop))

    def with_layers(self, layers: Sequence[int]) -> ModelConfig:
        """The model made of these layers alone, in this order, numbered from 0."""
        return dataclasses.replace(
            self,
            num_hidden_layers=len(layers),
            moe_layers=tuple(number for number, layer in enumerate(layers) if self.is_moe(layer)),
            rope_layers=tuple(self.rope_layers[layer] for layer in layers),
            chunked_layers=tuple(self.chunked_layers[layer] for layer in layers),
        )

    def inv_freq(self) -> NDArray[np.float64]:
        """RoPE's inverse frequencies, radians per position: float64 [head_dim / 2]."""
        return frequencies(self.rope_theta, self.head_dim, self.rope_scaling)

    @property
    def rope_attention_factor(self) -> float:
        """What rotated queries and keys are multiplied by."""
        return self.rope_scaling.attention_factor if isinstance(self.rope_scaling, YarnScaling) else 1.0


def checked(config: ModelConfig, fields: Fields) -> ModelConfig:
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
            isinstance(c.rope_scaling, YarnScaling) and c.rope_theta == 1,
            "rope_theta",
            "is 1, which has no frequencies for rope_type yarn to tell apart",
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
