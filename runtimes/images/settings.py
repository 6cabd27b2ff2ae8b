"""What a checkpoint says about its images, from the files that transformers 4 and 5 write.

transformers 4 has `preprocessor_config.json`; transformers 5 has the same settings in `processor_config.json` under
`image_processor`, which prevails where both are there. Both have patch size and names of tokens in
`processor_config.json`. Settings that would give other numbers than those of `Llama4ImageProcessor` as released are
refused by name; what it does not read is not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l4export.errors import InputError
from l4export.runtimes.arguments import a_number, a_whole_number, shown
from l4export.storage.regular_files import read_small

__all__ = ["MOST_TILES", "ImageSettings", "read_settings"]

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"

MOST_TILES = 256
"""The most tiles into which an image is cut, beside the global one; Llama 4 has 16."""

MOST_TILE_PIXELS = 1 << 25
"""The most pixels of all tiles of an image; Llama 4 has 1.9 million. Each takes 12 bytes."""

_MOST_SIDE = 2048
_FILE_BYTES = 1 << 20
_COPY = "copy it from the checkpoint again"
_PROCESSORS = ("Llama4ImageProcessor", "Llama4ImageProcessorFast")

_TOKENS = {
    "fake_image_token": "<|image|>",
    "image_token": "<|image|>",
    "start_of_image_token": "<|image_start|>",
    "end_of_image_token": "<|image_end|>",
    "patch_token": "<|patch|>",
    "tile_x_separator_token": "<|tile_x_separator|>",
    "tile_y_separator_token": "<|tile_y_separator|>",
}
"""transformers writes these into prompts whatever the file says, so another name in it cannot be meant."""


@dataclass(frozen=True)
class ImageSettings:
    """How images are made into tiles. The defaults are those of Llama 4 as released, and of transformers.

    Attributes:
        tile: Height and width of a tile in pixels (`size`).
        max_tiles: The most tiles into which an image is cut, beside the global one (`max_patches`).
        mean: Subtracted from each channel after rescaling (`image_mean`).
        std: By which it is then divided (`image_std`).
        rescale_factor: With which values of 0 to 255 are multiplied first.
        fill_canvas: Whether small images are enlarged as far as tiles go (`resize_to_max_canvas`).
        patch: Height and width of a patch in pixels (`patch_size`).
        shuffle: Patches that become one feature row, in each direction (1 / `pixel_shuffle_ratio`).
    """

    tile: int = 336
    max_tiles: int = 16
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255
    fill_canvas: bool = False
    patch: int = 14
    shuffle: int = 2

    @property
    def rows_of_a_tile(self) -> int:
        """Feature rows of a tile, which is its number of `<|patch|>` tokens: 144 in Llama 4."""
        return (self.tile // self.patch) ** 2 // self.shuffle**2

    @property
    def most_tiles(self) -> int:
        """The most tiles that can be asked for, whatever the checkpoint says."""
        return min(MOST_TILES, MOST_TILE_PIXELS // self.tile**2 - 1)


def read_settings(directory: Path) -> ImageSettings:
    """Read the settings of a checkpoint or an engine.

    Raises:
        InputError: no file has them, one is broken, or a setting is impossible or not implemented.
        StorageError: a file cannot be read.
    """
    processor_path, path = directory / PROCESSOR, directory / PREPROCESSOR
    processor = _read(processor_path)
    found = processor.get("image_processor")
    if found is None:
        if not path.exists():
            raise InputError(f"{path}: there is none, and images need its settings; {_COPY}")
        found = _read(path)
    else:
        path = processor_path
    if not isinstance(found, dict):
        raise InputError(f"{path}: image_processor is {shown(found)}: it must be an object; {_COPY}")
    try:
        return _settings(found, processor)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    """An object of JSON; an empty one where there is no file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(read_small(path, _FILE_BYTES, _COPY).decode("utf-8-sig"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object; {_COPY}")
    return value


def _settings(image: Mapping[str, Any], processor: Mapping[str, Any]) -> ImageSettings:
    _refuse_others(image, processor)
    released = ImageSettings()
    tile = a_whole_number(_side(image.get("size", released.tile)), "size", 1, _MOST_SIDE)
    patch = a_whole_number(processor.get("patch_size", released.patch), "patch_size", 1, tile)
    ratio = a_number(processor.get("pixel_shuffle_ratio", 0.5), "pixel_shuffle_ratio", "0.5, as Llama 4")
    shuffle = round(1 / ratio) if 1 / tile <= ratio <= 1 else 0
    if not shuffle or abs(shuffle * ratio - 1) > 1e-6 or tile // patch % shuffle:
        raise InputError(f"pixel_shuffle_ratio is {shown(ratio)}: 1 / it must be a divisor of {tile // patch} patches")
    most = ImageSettings(tile).most_tiles
    max_tiles = a_whole_number(image.get("max_patches", released.max_tiles), "max_patches", 1, most)
    fill_canvas = image.get("resize_to_max_canvas", False)
    if not isinstance(fill_canvas, bool):
        raise InputError(f"resize_to_max_canvas is {shown(fill_canvas)}: it must be true or false")
    mean, std = (_three(image.get(name, 0.5), name) for name in ("image_mean", "image_std"))
    if min(std) < 1e-6:
        raise InputError(f"image_std is {shown(list(std))}: give numbers above 0")
    rescale = _bounded(image.get("rescale_factor", released.rescale_factor), "rescale_factor")
    return ImageSettings(tile, max_tiles, mean, std, rescale, fill_canvas, patch, shuffle)


def _refuse_others(image: Mapping[str, Any], processor: Mapping[str, Any]) -> None:
    """Refuse settings that lead to other numbers than those of this module."""
    if (kind := image.get("image_processor_type", _PROCESSORS[0])) not in _PROCESSORS:
        raise InputError(f"image_processor_type is {shown(kind)}: only {_PROCESSORS[0]} is known")
    for name in ("do_rescale", "do_normalize"):
        if image.get(name, True) is not True:
            raise InputError(f"{name} is {shown(image[name])}: the released models have true, others are not known")
    if (resample := image.get("resample")) is not None and (isinstance(resample, bool) or resample != 2):
        raise InputError(f"resample is {shown(resample)}: only 2, bilinear, is known")
    for name, token in _TOKENS.items():
        if processor.get(name, token) != token:
            raise InputError(f"{name} is {shown(processor[name])}: transformers writes {token}; correct it")


def _side(size: Any) -> Any:
    """The side of a square that is given as a number, or as height and width."""
    if not isinstance(size, dict):
        return size
    if set(size) != {"height", "width"} or size["height"] != size["width"]:
        raise InputError(f"size is {shown(size)}: give equal height and width")
    return size["height"]


def _three(value: Any, name: str) -> tuple[float, float, float]:
    """A number for each channel, from three or from one."""
    numbers = value if isinstance(value, list) else [value]
    if len(numbers) not in (1, 3):
        raise InputError(f"{name} is {shown(value)}: give three numbers")
    first, *others = (_bounded(number, name) for number in numbers)
    second, third = others or (first, first)
    return first, second, third


def _bounded(value: Any, name: str) -> float:
    number = a_number(value, name, wanted := "a number of -1000 to 1000")
    if abs(number) > 1000:
        raise InputError(f"{name} is {shown(value)}: give {wanted}")
    return number
