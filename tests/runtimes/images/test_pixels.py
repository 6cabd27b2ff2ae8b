"""Tiles against what transformers makes of the same images (tests/support/transformers_images.py): bit for bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_cases import RECORD, digest, grid_cases, pixel_cases
from pictures import picture
from PIL import Image

from l4export.errors import InputError
from l4export.runtimes.images.decoding import Frame
from l4export.runtimes.images.processor import ImageProcessor
from l4export.runtimes.images.resize import resize
from l4export.runtimes.images.settings import ImageSettings, read_settings
from l4export.runtimes.images.tiling import choose_grid, fitted

RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))
CASES = {name: (image, changed) for name, image, changed in pixel_cases()}


def test_the_record_is_of_these_cases() -> None:
    assert list(CASES) == list(RECORDED["pixels"]) and len(CASES) > 100
    assert RECORDED["versions"]["torch"].startswith(torch.__version__.partition("+")[0])


@pytest.mark.parametrize("name", CASES)
def test_tiles_are_those_of_transformers(tmp_path: Any, name: str) -> None:
    image, changed = CASES[name]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(changed))
    done = ImageProcessor(read_settings(tmp_path))([image])
    assert done.tiles.dtype == np.float32
    assert f"{done.grids[0][0]} x {done.grids[0][1]}: {digest(done.tiles)}" == RECORDED["pixels"][name]
    if list(changed) == ["max_patches"]:
        assert ImageProcessor()([image], max_tiles=changed["max_patches"]).digests == done.digests


def test_grids_and_sizes_are_those_of_transformers() -> None:
    found = []
    for height, width, most, fill in grid_cases():
        grid = choose_grid(height, width, 336, most, fill)
        found.append([list(grid), list(fitted(height, width, grid, 336, fill))])
    assert digest(found) == RECORDED["grids"]


SIDE = st.integers(1, 400)


@settings(deadline=None, max_examples=150)
@given(st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE))
def test_resizing_is_that_of_pytorch(old: tuple[int, int], new: tuple[int, int]) -> None:
    planes = np.ascontiguousarray(picture(*old).transpose(2, 0, 1))
    try:
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(planes)[None], new, mode="bilinear", align_corners=False, antialias=True
        )
    except RuntimeError as error:
        assert "INTERNAL ASSERT" in str(error) and new == (1, 1)  # a fault of this PyTorch
        return
    assert np.array_equal(resize(planes, *new), expected[0].numpy())


@pytest.mark.parametrize("old", [(1, 40_000), (40_000, 1), (3, 9000)], ids=str)
def test_resizing_by_large_factors_is_that_of_pytorch(old: tuple[int, int]) -> None:
    """Where float32 no longer holds the sums."""
    planes = np.ascontiguousarray(picture(*old).transpose(2, 0, 1))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(planes)[None], (7, 7), mode="bilinear", align_corners=False, antialias=True
    )
    assert np.array_equal(resize(planes, 7, 7), expected[0].numpy())


def test_several_images_and_what_is_said_about_them() -> None:
    pictures = [picture(480, 640), picture(9, 9), picture(600, 800)]
    done = ImageProcessor()(pictures)
    assert len(done) == 3 and done.grids == ((2, 2), (1, 1), (2, 3))
    assert done.tile_counts == (5, 1, 7) and done.feature_rows == (720, 144, 1008)
    alone = [ImageProcessor()([one]) for one in pictures]
    assert np.array_equal(done.tiles, np.concatenate([one.tiles for one in alone]))
    assert all(np.array_equal(done.tiles_of(index), one.tiles) for index, one in enumerate(alone))
    assert done.digests == tuple(digest for one in alone for digest in one.digests)
    none = ImageProcessor()([])
    assert none.tiles.shape == (0, 3, 336, 336) and none.grids == none.digests == none.feature_rows == ()


def test_digests_are_those_of_tiles() -> None:
    make = ImageProcessor()
    one = picture(400, 300)
    other = one.copy()
    other[399, 299, 2] ^= 255
    first, second, third = make([one, other, Image.fromarray(one)]).digests
    assert first == third != second and len(first) == 64
    assert make([one], max_tiles=1).digests != (first,)  # equal pixels, but other tiles
    assert ImageProcessor(ImageSettings(mean=(0.4, 0.5, 0.5)))([one]).digests != (first,)


def test_frames_have_one_tile_unless_more_are_asked_for() -> None:
    one = picture(108, 192)
    make = ImageProcessor(ImageSettings(tile=56))
    assert make([Frame(one), one]).grids == ((1, 1), (2, 4))
    assert make([Frame(one), one], max_tiles=6).grids == ((2, 3), (2, 3))


@pytest.mark.parametrize(
    "images", ["photo.png", b"x", picture(3, 3), None, 5], ids=lambda images: type(images).__name__
)
def test_images_come_in_a_sequence(images: Any) -> None:
    with pytest.raises(InputError, match="images: must be a sequence"):
        ImageProcessor()(images)


@pytest.mark.parametrize("max_tiles", [0, -1, 1.5, True, 257, "4"])
def test_impossible_numbers_of_tiles(max_tiles: Any) -> None:
    with pytest.raises(InputError, match=r"max_tiles is .*: give a whole number, 1 to 256"):
        ImageProcessor()([picture(3, 3)], max_tiles)
