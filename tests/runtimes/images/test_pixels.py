"""Tiles against transformers' own processor: not one value differs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import MODES, in_mode, picture
from reference_images import image_processor, pixels_and_grids

from l4export.errors import InputError
from l4export.runtimes.images.decoding import Frame
from l4export.runtimes.images.processor import ImageProcessor
from l4export.runtimes.images.settings import ImageSettings
from l4export.runtimes.images.tiling import choose_grid, fitted

SIZES = [
    *((1, 1), (1, 2), (2, 1), (1, 1000), (1000, 1), (3, 3), (5, 7), (336, 336), (337, 336), (336, 337), (335, 1009)),
    *((100, 50), (480, 640), (600, 800), (1080, 1920), (64, 1024), (4000, 300), (1500, 2000), (31, 2000), (672, 336)),
]


def assert_identical(images: list[Any], reference: list[Any] | None = None, **of_processor: Any) -> None:
    tiles, grids = pixels_and_grids(REFERENCE, reference or images, input_data_format="channels_last", **of_processor)
    done = ImageProcessor()(images, max_tiles=of_processor.get("max_patches"))
    assert list(done.grids) == grids
    assert done.tiles.dtype == np.float32 and np.array_equal(done.tiles, tiles)


REFERENCE = image_processor()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size: tuple[int, int]) -> None:
    assert_identical([picture(*size)])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (40, 33), (200, 500), (400, 350)], ids=str)
def test_modes(mode: str, size: tuple[int, int]) -> None:
    assert_identical([in_mode(mode, *size)])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_transparent_colours(mode: str) -> None:
    image = in_mode(mode, 50, 40)
    image.info["transparency"] = {"RGB": (image.getpixel((3, 3))), "P": bytes(range(256))}.get(mode, 255)
    assert_identical([image])


@settings(deadline=None, max_examples=40)
@given(st.tuples(st.integers(1, 700), st.integers(1, 700)), st.integers(1, 20))
def test_any_size_and_number_of_tiles(size: tuple[int, int], max_tiles: int) -> None:
    assert_identical([picture(*size)], max_patches=max_tiles)


@pytest.mark.parametrize("changed", [
    {"size": {"height": 56, "width": 56}},
    {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]},
    {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0]},
    {"resize_to_max_canvas": True},
    {"max_patches": 4, "resize_to_max_canvas": True},
], ids=lambda changed: " ".join(changed))
def test_settings(changed: dict[str, Any]) -> None:
    names = {"image_mean": "mean", "image_std": "std", "max_patches": "max_tiles", "resize_to_max_canvas": "fill_canvas"}
    own = {names.get(name, name): tuple(value) if isinstance(value, list) else value for name, value in changed.items()}
    if size := own.pop("size", None):
        own["tile"] = size["height"]
    for size in ((40, 90), (336, 200), (700, 500)):
        tiles, grids = pixels_and_grids(image_processor(**changed), [picture(*size)], input_data_format="channels_last")
        done = ImageProcessor(ImageSettings(**own))([picture(*size)])
        assert list(done.grids) == grids and np.array_equal(done.tiles, tiles)


def test_several_images_and_what_is_said_about_them() -> None:
    pictures = [picture(480, 640), picture(9, 9), picture(600, 800)]
    assert_identical(pictures)
    done = ImageProcessor()(pictures)
    assert len(done) == 3 and done.grids == ((2, 2), (1, 1), (2, 3))
    assert done.tile_counts == (5, 1, 7) and done.feature_rows == (720, 144, 1008)
    assert [len(done.tiles_of(index)) for index in range(3)] == [5, 1, 7]
    assert np.array_equal(done.tiles_of(2), ImageProcessor()(pictures[2:]).tiles)
    none = ImageProcessor()([])
    assert none.tiles.shape == (0, 3, 336, 336) and none.grids == none.digests == none.feature_rows == ()


def test_digests_are_those_of_tiles() -> None:
    make = ImageProcessor()
    one = picture(400, 300)
    other = one.copy()
    other[399, 299, 2] ^= 255
    first, second, third = make([one, other, one]).digests
    assert first == third != second and len(first) == 64
    assert make([one], max_tiles=1).digests != (first,)  # equal pixels, but other tiles
    assert ImageProcessor(ImageSettings(mean=(0.4, 0.5, 0.5)))([one]).digests != (first,)


def test_frames_have_one_tile_unless_more_are_asked_for() -> None:
    one = picture(1080, 1920)
    assert ImageProcessor()([Frame(one), one]).grids == ((1, 1), (3, 5))
    assert ImageProcessor()([Frame(one), one], max_tiles=6).grids == ((2, 3), (2, 3))
    assert_identical([one], max_patches=1)


@pytest.mark.parametrize("fill_canvas", [False, True])
def test_grids_and_sizes_of_many_images(fill_canvas: bool) -> None:
    """As transformers' definition says, which mixes float32 and float64."""
    from transformers.image_utils import SizeDict
    from transformers.models.llama4 import image_processing_llama4 as definition

    pages = torch.tensor(definition.find_supported_resolutions(16, SizeDict(height=336, width=336)))
    sizes = np.exp(np.random.default_rng(5).uniform(0, 9.5, (1500, 2))).astype(int).tolist()
    for height, width in [*sizes, (2695, 3069), (40, 90), (700, 500)]:
        page = definition.get_best_fit((height, width), pages, fill_canvas)
        grid = choose_grid(height, width, 336, 16, fill_canvas)
        assert [side * 336 for side in grid] == page.tolist(), (height, width)
        wanted = page if fill_canvas else (min(max(height, 336), page[0]), min(max(width, 336), page[1]))
        size = definition.get_max_res_without_distortion((height, width), wanted)
        assert fitted(height, width, grid, 336, fill_canvas) == tuple(max(int(side), 1) for side in size)


@pytest.mark.parametrize("images", ["photo.png", b"x", picture(3, 3), None, 5], ids=lambda images: type(images).__name__)
def test_images_come_in_a_sequence(images: Any) -> None:
    with pytest.raises(InputError, match="images: must be a sequence"):
        ImageProcessor()(images)


@pytest.mark.parametrize("max_tiles", [0, -1, 1.5, True, 257, "4"])
def test_impossible_numbers_of_tiles(max_tiles: Any) -> None:
    with pytest.raises(InputError, match=r"max_tiles is .*: give a whole number, 1 to 256"):
        ImageProcessor()([picture(3, 3)], max_tiles)
