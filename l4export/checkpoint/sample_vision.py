"""The vision tower of sample checkpoints: its configuration, and the image processor's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from l4export.errors import InputError

__all__ = ["VISION_VARIANTS", "whole_config", "write_processor"]

VISION_VARIANTS = ("scout", "maverick", "guard")
"""The members of the family that see images."""

_SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
        "projector": 48,
    },
    # the released width and tile, two of the layers
    "bench": {
        "hidden_size": 1408,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projector": 4096,
    },
    "full": {
        "hidden_size": 1408,
        "num_hidden_layers": 34,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projector": 4096,
    },
}
_TOKENS = {
    "tiny": {"boi_token_index": 230, "eoi_token_index": 231, "image_token_index": 236},
    "bench": {"boi_token_index": 31080, "eoi_token_index": 31081, "image_token_index": 31092},
    "full": {"boi_token_index": 200080, "eoi_token_index": 200081, "image_token_index": 200092},
}
_SHUFFLE = 0.5


def whole_config(text: dict[str, Any], variant: str, size: str) -> dict[str, Any]:
    """The config.json of a multimodal sample, as transformers 5 writes it, around that of its text model.

    Raises:
        InputError: the variant sees no images.
    """
    if variant not in VISION_VARIANTS:
        raise InputError(f"sample: variant {variant!r} has no vision tower; choose {', '.join(VISION_VARIANTS)}")
    shapes = dict(_SHAPES[size])
    out = shapes.pop("projector")
    vision = {
        "model_type": "llama4_vision_model",
        **shapes,
        "hidden_act": "gelu",
        "intermediate_size": round(shapes["hidden_size"] / _SHUFFLE**2),
        "num_channels": 3,
        "norm_eps": 1e-5,
        "pixel_shuffle_ratio": _SHUFFLE,
        "projector_input_dim": out,
        "projector_output_dim": out,
        "vision_output_dim": out,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "dtype": text["dtype"],
        **_TOKENS[size],
        "text_config": {name: value for name, value in text.items() if name != "architectures"},
        "tie_word_embeddings": False,
        "vision_config": vision,
    }


def write_processor(path: Path, config: dict[str, Any]) -> None:
    """Write the image processor's files for a multimodal config.json into the directory `path`."""
    vision = config["vision_config"]
    side = vision["image_size"]
    image = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Llama4ImageProcessorFast",
        "image_std": [0.5, 0.5, 0.5],
        "max_patches": 16,
        "processor_class": "Llama4Processor",
        "resample": 2,
        "rescale_factor": 1 / 255,
        "resize_to_max_canvas": False,
        "size": {"height": side, "width": side},
    }
    prompt = {
        "fake_image_token": "<|image|>",
        "image_token": "<|image|>",
        "patch_size": vision["patch_size"],
        "pixel_shuffle_ratio": vision["pixel_shuffle_ratio"],
        "processor_class": "Llama4Processor",
    }
    for name, content in (("preprocessor_config.json", image), ("processor_config.json", prompt)):
        (path / name).write_text(json.dumps(content, indent=2) + "\n")
