"""Tiny vision towers: transformers' own, with seeded weights, and configs of many shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

WIDTH = 24
"""Channels of the decoder that these towers are for."""

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "head 88": {"hidden_size": 176, "num_attention_heads": 2, "intermediate_size": 704},
    "blocks of 4x4": {"pixel_shuffle_ratio": 0.25, "intermediate_size": 512, "image_size": 32},
    "no shuffle": {"pixel_shuffle_ratio": 1.0, "intermediate_size": 32},
    "mixed widths": {"hidden_size": 60, "num_attention_heads": 5, "intermediate_size": 240, "num_hidden_layers": 3},
    "other patches": {"patch_size": 7, "image_size": 42, "rope_parameters": {"rope_theta": 500.0}},
}


def vision_raw(**changes: Any) -> dict[str, Any]:
    """A `vision_config` as transformers 5 writes it."""
    size = changes.pop("projector", 20)
    return {
        "model_type": "llama4_vision_model",
        "hidden_size": 32,
        "hidden_act": "gelu",
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_channels": 3,
        "intermediate_size": 128,
        "image_size": 16,
        "patch_size": 4,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": size,
        "projector_output_dim": size,
        "vision_output_dim": size,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        **changes,
    }


def whole_raw(vision: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A config.json with this tower and a text model of a few tokens, whose image token is 9."""
    text = {"model_type": "llama4_text", "vocab_size": 16, "hidden_size": WIDTH, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_local_experts": 0}
    text |= {"moe_layers": [], "intermediate_size": 8, "intermediate_size_mlp": 8, "pad_token_id": 0}
    return {"model_type": "llama4", "text_config": text, "vision_config": vision, "image_token_index": 9, **changes}


def transformers_tower(vision: dict[str, Any], seed: int = 0) -> Any:
    """transformers' tower, adapter and projector, with every weight and bias random, as a module that gives features.

    Norms are near one; other weights keep what passes through them of order one.
    """
    import torch
    from transformers import Llama4Config
    from transformers.models.llama4.modeling_llama4 import Llama4MultiModalProjector, Llama4VisionModel

    config = Llama4Config(**{name: value for name, value in whole_raw(vision).items() if name != "model_type"})

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_model = Llama4VisionModel(config.vision_config)
            self.multi_modal_projector = Llama4MultiModalProjector(config)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            hidden = self.vision_model(pixel_values).last_hidden_state
            features: torch.Tensor = self.multi_modal_projector(hidden.flatten(0, 1))
            return features

    tower, rng = Tower().eval(), np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            values = rng.standard_normal(tuple(parameter.shape)).astype(np.float32)
            if "norm" in name and name.endswith("weight"):
                values = 1 + 0.1 * values
            elif values.ndim == 2 and "positional" not in name:
                values /= np.sqrt(values.shape[1])
            parameter.copy_(torch.from_numpy(values))
    return tower


def pixels(tiles: int, size: int, seed: int = 1) -> np.ndarray:
    """Seeded pixel values float32 [tiles, 3, size, size] in -1 to 1, as an image processor gives them: bfloat16."""
    import ml_dtypes

    values = np.random.default_rng(seed).uniform(-1, 1, (tiles, 3, size, size))
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)
