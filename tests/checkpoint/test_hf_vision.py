"""What a `vision_config` says, and what is refused of it, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_vision import SHAPES, WIDTH, transformers_tower, vision_raw, whole_raw

from l4export.checkpoint.hf_vision import vision_from_hf
from l4export.errors import InputError
from l4export.model.tensors import vision_tensors
from l4export.model.vision_config import VisionConfig


def read(**changes: Any) -> VisionConfig:
    return vision_from_hf(whole_raw(vision_raw(**changes)), "config.json", 16)


RELEASED = {
    "hidden_size": 1408,
    "num_attention_heads": 16,
    "num_hidden_layers": 34,
    "intermediate_size": 5632,
    "image_size": 336,
    "patch_size": 14,
    "projector": 4096,
}


def test_the_released_tower() -> None:
    config = read(**RELEASED)
    assert (config.head_dim, config.grid, config.block, config.rows_per_tile) == (88, 24, 2, 144)
    sizes = [int(np.prod(shape)) for shape in vision_tensors(config, 5120).values()]
    assert round(sum(sizes) / 1e6, 1) == 871.9  # million parameters, as counted in the released checkpoint


@pytest.mark.parametrize("shape", SHAPES)
def test_its_tensors_are_what_transformers_saves(shape: str) -> None:
    state = transformers_tower(vision_raw(**SHAPES[shape])).state_dict()
    assert vision_tensors(read(**SHAPES[shape]), WIDTH) == {name: tuple(value.shape) for name, value in state.items()}


@pytest.mark.parametrize("shape", SHAPES)
def test_its_rotation_is_that_of_transformers(shape: str) -> None:
    tower = transformers_tower(vision_raw(**SHAPES[shape]))
    expected = tower.vision_model.rotary_embedding.freqs_ci[:, 0].numpy()
    cos, sin = read(**SHAPES[shape]).rotation()
    # angles of up to 9 radians, rounded to float32, of frequencies that two libraries round to it
    np.testing.assert_allclose(cos + 1j * sin, expected, atol=2e-6)


def test_both_spellings_of_the_angles() -> None:
    old = vision_raw(rope_theta=123.0)
    del old["rope_parameters"]
    assert vision_from_hf(whole_raw(old), "config.json", 16).rope_theta == 123
    assert read(rope_parameters={"rope_theta": 123.0}, rope_theta=7.0).rope_theta == 123
    del old["rope_theta"]
    assert vision_from_hf(whole_raw(old), "config.json", 16).rope_theta == 10000


def test_it_survives_a_manifest() -> None:
    config = read()
    assert VisionConfig.from_dict(config.to_dict(), "manifest.json") == config


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads is 5; it must divide hidden_size 32"),
        ({"num_attention_heads": 16}, "hidden_size gives heads of 2; 2-D RoPE needs a multiple of 4"),
        ({"image_size": 18}, "image_size is 18, no multiple of patch_size 4"),
        ({"image_size": [16, 16]}, "image_size is an array; expected an integer"),
        ({"pixel_shuffle_ratio": 0.4}, "pixel_shuffle_ratio is 0.4; expected one over a whole number"),
        ({"pixel_shuffle_ratio": 2}, "pixel_shuffle_ratio is 2.0; expected one over a whole number"),
        ({"pixel_shuffle_ratio": 1e-9}, "pixel_shuffle_ratio is 1e-09; expected one over a whole number"),
        ({"image_size": 20}, "pixel_shuffle_ratio is 0.5, which does not cut 5x5 patches into whole blocks"),
        (
            {"intermediate_size": 96},
            r"intermediate_size is 96; .* hidden_size / pixel_shuffle_ratio\^2 = 128",
        ),
        ({"vision_output_dim": 24}, "vision_output_dim is 24; it must be projector_input_dim 20"),
        ({"projector_output_dim": 24}, "projector_output_dim is 24; it must be projector_input_dim 20"),
        ({"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'; only 'gelu' is supported"),
        ({"num_channels": 1}, "num_channels is 1; images have 3"),
        ({"hidden_size": None}, "hidden_size is null; expected an integer"),
        ({"image_size": 2**14, "patch_size": 1}, "gives 16384x16384 patches; expected 65536 at most"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta is 0; expected a finite number above 0"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=f"^config.json: vision_config.*{problem}"):
        read(**changes)


def test_the_image_token_is_in_the_vocabulary() -> None:
    with pytest.raises(InputError, match="image_token_index is 16, outside the vocabulary of 16 tokens"):
        vision_from_hf(whole_raw(vision_raw(), image_token_index=16), "config.json", 16)
