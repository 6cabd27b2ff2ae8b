"""The vision tower's configuration: what turns tiles of an image into rows for the decoder.

Read from a checkpoint's `vision_config` (`l4export.checkpoint.hf_vision`) or from an engine's manifest. Both are
untrusted: every value is checked for type and range, and every refusal is one line that names the field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.model.config_fields import Fields

__all__ = ["VisionConfig", "checked_vision"]

# name -> (lowest, highest accepted value)
_INTEGERS = {
    "hidden_size": (4, 2**16),
    "intermediate_size": (1, 2**20),
    "num_hidden_layers": (1, 1024),
    "num_attention_heads": (1, 2**12),
    "image_size": (1, 2**14),
    "patch_size": (1, 2**12),
    "projector_size": (1, 2**20),
    "image_token_id": (0, 2**24),
}
_MOST_PATCHES = 2**16


@dataclass(frozen=True)
class VisionConfig:
    """Shapes of a Llama 4 vision tower, its adapter and its projector.

    A tile is a square of `image_size` pixels and is cut into `grid` x `grid` patches of `patch_size` pixels. The pixel
    shuffle makes one row of `pixel_shuffle_ratio`^-2 patches, the adapter gives it `projector_size` channels, and the
    projector the decoder's width. A row stands where the prompt has the token `image_token_id`.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    pixel_shuffle_ratio: float
    projector_size: int
    rope_theta: float
    image_token_id: int

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str) -> VisionConfig:
        """The inverse of `to_dict`; every field must be there (`InputError`), and unknown ones are ignored."""
        fields = Fields(raw, where, required=True)
        values: dict[str, Any] = {
            name: fields.typed(name, fields.value(name, None), int, *limits) for name, limits in _INTEGERS.items()
        }
        values |= {name: fields.number(name, 0.0) for name in ("pixel_shuffle_ratio", "rope_theta")}
        return checked_vision(cls(**values), fields)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, in the order of their declaration."""
        return dataclasses.asdict(self)

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def grid(self) -> int:
        """Patches along a side of a tile."""
        return self.image_size // self.patch_size

    @property
    def block(self) -> int:
        """Patches along a side of what becomes one row."""
        return round(1 / self.pixel_shuffle_ratio)

    @property
    def rows_per_tile(self) -> int:
        """Rows of features, and tokens of the prompt, that a tile takes."""
        return (self.grid // self.block) ** 2

    def rotation(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """cos and sin of the rotary angles: float32 [patches + 1, head_dim / 2], the class token last.

        Pairs of channels are rotated by X * f_j, then by Y * f_j, for j < head_dim / 4, with f_j =
        theta^(-4 j / head_dim), X = column + 1 and Y = row + 1 of the patch; the class token is not rotated
        [transformers, `Llama4VisionRotaryEmbedding`]. Products are taken in float32 as there.
        """
        pairs = self.head_dim // 4
        exponents = np.arange(0, 2 * pairs, 2, dtype=np.float32) / np.float32(2 * pairs)
        frequencies = (1 / np.float32(self.rope_theta) ** exponents).astype(np.float32)
        rows, columns = np.divmod(np.arange(self.grid**2), self.grid)
        x, y = ((n + 1).astype(np.float32)[:, None] * frequencies for n in (columns, rows))
        angles = np.concatenate([np.concatenate([x, y], axis=1), np.zeros((1, 2 * pairs), np.float32)])
        cos, sin = (f(angles.astype(np.float64)).astype(np.float32) for f in (np.cos, np.sin))
        return cos, sin


def checked_vision(config: VisionConfig, fields: Fields) -> VisionConfig:
    """Refuse values that are fine one by one and contradict each other."""
    c, ratio, heads = config, config.pixel_shuffle_ratio, config.num_attention_heads
    block, width = round(1 / ratio) if _is_one_over(ratio) else 0, c.hidden_size // heads
    inner = c.hidden_size * block**2
    rules = [
        (c.hidden_size % heads, "num_attention_heads", f"is {heads}; it must divide hidden_size {c.hidden_size}"),
        (width % 4, "hidden_size", f"gives heads of {width}; 2-D RoPE needs a multiple of 4"),
        (c.image_size % c.patch_size, "image_size", f"is {c.image_size}, no multiple of patch_size {c.patch_size}"),
        (c.grid**2 > _MOST_PATCHES, "image_size", f"gives {c.grid}x{c.grid} patches; expected {_MOST_PATCHES} at most"),
        (not block, "pixel_shuffle_ratio", f"is {ratio}; expected one over a whole number"),
        (
            block and c.grid % block,
            "pixel_shuffle_ratio",
            f"is {ratio}, which does not cut {c.grid}x{c.grid} patches into whole blocks",
        ),
        (
            c.intermediate_size != inner,
            "intermediate_size",
            f"is {c.intermediate_size}; the adapter takes hidden_size / pixel_shuffle_ratio^2 = {inner}",
        ),
    ]
    for broken, name, problem in rules:
        if broken:
            raise fields.refuse(name, problem)
    return config


def _is_one_over(ratio: float) -> bool:
    return 1 / _INTEGERS["image_size"][1] <= ratio <= 1 and ratio == 1 / round(1 / ratio)
