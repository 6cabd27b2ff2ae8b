"""What transformers' own processor makes of images and of prompts with images, where it can be run.

It needs torchvision, which is not among l4export's packages. Where it cannot be run, `EnvironmentLacks` says why, and
nothing was compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.errors import EnvironmentLacks, one_line

__all__ = ["transformers_ids", "transformers_tiles"]


def transformers_tiles(checkpoint: Path, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Pixel values float32 [tiles, 3, T, T] of pictures uint8 [H, W, 3], by the checkpoint's `Llama4ImageProcessor`.

    Raises:
        EnvironmentLacks: it cannot be run here.
    """
    try:
        done = _image_processor(checkpoint)(images=list(pictures), return_tensors="pt", **_ARRAYS)
    except Exception as error:
        raise _lacking("Llama4ImageProcessor", error) from error
    tiles: NDArray[np.float32] = done["pixel_values"].float().numpy()
    return tiles


def transformers_ids(checkpoint: Path, text: str, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.int64]:
    """Ids int64 [T] of a text with a placeholder `<|image|>` for each picture, by `Llama4Processor`.

    Raises:
        EnvironmentLacks: it cannot be run here.
    """
    try:
        from transformers import AutoTokenizer, Llama4Processor

        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        process = Llama4Processor.from_pretrained(
            checkpoint, image_processor=_image_processor(checkpoint), tokenizer=tokenizer, local_files_only=True
        )
        ids: Any = process(text=text, images=list(pictures), **_ARRAYS)["input_ids"][0]
    except Exception as error:
        raise _lacking("Llama4Processor", error) from error
    return np.asarray(ids, np.int64)


_ARRAYS = {"input_data_format": "channels_last"}
"""Where the colours of an array are, which cannot be guessed from one with 1, 3 or 4 rows."""


def _image_processor(checkpoint: Path) -> Any:
    from transformers import Llama4ImageProcessor

    return Llama4ImageProcessor.from_pretrained(checkpoint, local_files_only=True)


def _lacking(name: str, error: Exception) -> EnvironmentLacks:
    return EnvironmentLacks(f"transformers' {name} cannot be run here: {one_line(error)[:160]}")
