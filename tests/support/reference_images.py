"""transformers' own processor for images of Llama 4, the definition of what `l4export.runtimes.images` computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["image_processor", "pixels_and_grids", "register_torchvision"]


def register_torchvision() -> None:
    """Make torchvision importable beside a PyTorch for CPUs.

    The package index has one built for CUDA, whose library of operators does not load there. Importing it fails because
    two of them are absent, of which none is used here.
    """
    try:
        torch.ops.torchvision.nms  # noqa: B018 - found or not
    except (AttributeError, RuntimeError):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
    import torchvision  # noqa: F401


_KEPT: list[Any] = []
"""Operators are forgotten with the library that defines them."""


def image_processor(**settings: Any) -> Any:
    """A `Llama4ImageProcessor`."""
    register_torchvision()
    from transformers import Llama4ImageProcessor

    return Llama4ImageProcessor(**settings)


def pixels_and_grids(
    processor: Any, images: Sequence[Any], **settings: Any
) -> tuple[NDArray[np.float32], list[tuple[int, int]]]:
    """What it makes of images: the values of all tiles, which bfloat16 holds, as float32; and the grids."""
    done = [processor(images=[image], return_tensors="pt", **settings) for image in images]
    tiles = [one["pixel_values"].reshape(-1, *one["pixel_values"].shape[-3:]).float() for one in done]
    assert all(one["pixel_values"].dtype == torch.bfloat16 for one in done)
    grids = [(int(one["aspect_ratios"][0][0]), int(one["aspect_ratios"][0][1])) for one in done]
    return torch.cat(tiles).numpy(), grids
