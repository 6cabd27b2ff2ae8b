"""Images in C++ against the Python runtime, which is held to transformers: tiles, grids and digests bit for bit."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_cases import RECORD, digest, pixel_cases
from numpy.typing import NDArray
from pictures import picture
from tiny_tokenizers import IMAGE, byte_level, with_images

from l4export.errors import InputError
from l4export.runtimes.images.decoding import decode
from l4export.runtimes.images.processor import ImageProcessor
from l4export.runtimes.images.prompt import ImageTokens, expand_images
from l4export.runtimes.images.settings import read_settings
from native_images import NativeImages, Picture, expand
from native_library import NativeError, check, native_library
from native_tokenizer import NativeTokenizer

BAD_INPUT, STORAGE = 2, 4
CASES = {name: (image, changed) for name, image, changed in pixel_cases()}
RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))["pixels"]


def described(directory: Path, image: dict[str, Any], processor: dict[str, Any] | None = None) -> Path:
    """A directory with settings of images."""
    directory.mkdir(exist_ok=True)
    (directory / "preprocessor_config.json").write_text(json.dumps(image))
    if processor is not None:
        (directory / "processor_config.json").write_text(json.dumps(processor))
    return directory


def assert_as_python(directory: Path, pictures: list[NDArray[np.uint8]], max_tiles: int | None = None) -> None:
    expected = ImageProcessor.open(directory)(pictures, max_tiles)
    found = NativeImages(directory, pictures, max_tiles or 0)
    infos = found.infos
    assert tuple(info.grid for info in infos) == expected.grids
    assert tuple(info.digest for info in infos) == expected.digests
    assert tuple(info.tiles for info in infos) == expected.tile_counts
    assert tuple(info.tokens for info in infos) == expected.token_counts
    assert found.tiles.tobytes() == expected.tiles.tobytes() and found.tiles.shape == expected.tiles.shape


@pytest.mark.parametrize("name", CASES)
def test_tiles_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    image, changed = CASES[name]
    pixels = decode(image, name)
    done = NativeImages(described(tmp_path, changed), [pixels])
    rows, columns = done.infos[0].grid
    assert f"{rows} x {columns}: {digest(done.tiles)}" == RECORDED[name]
    assert_as_python(tmp_path, [pixels])


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int]:
    """Sizes of all orders: thin ones, tiny ones, and up to 60,000 pixels."""
    height = int(2 ** draw(st.floats(0, 11)))
    return (height, draw(st.integers(1, max(1, 60_000 // height))))[:: draw(st.sampled_from([1, -1]))]


@settings(deadline=None, max_examples=60)
@given(shapes(), st.integers(1, 40), st.sampled_from([1, 7, 32, 56]), st.booleans())
def test_any_size_gives_the_tiles_of_python(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], most: int, tile: int, fill: bool
) -> None:
    directory = tmp_path_factory.mktemp("settings")
    described(directory, {"size": tile, "resize_to_max_canvas": fill}, {"patch_size": 1, "pixel_shuffle_ratio": 1})
    assert_as_python(directory, [picture(*shape)], most)


@pytest.mark.parametrize("shape", [(1, 40_000), (40_000, 1), (65_536, 3), (3, 65_536), (2, 9000)], ids=str)
def test_extreme_ratios(tmp_path: Path, shape: tuple[int, int]) -> None:
    described(tmp_path, {"size": 56})
    assert_as_python(tmp_path, [picture(*shape)])
    described(tmp_path, {"size": 1, "max_patches": 256}, {"patch_size": 1, "pixel_shuffle_ratio": 1})
    assert_as_python(tmp_path, [picture(*shape)])


numbers = st.floats(-1000, 1000) | st.integers(-1000, 1000)


@settings(deadline=None, max_examples=40)
@given(st.lists(numbers, min_size=3, max_size=3), st.lists(st.floats(1e-6, 1000), min_size=3, max_size=3), numbers)
def test_any_normalisation_is_that_of_python(
    tmp_path_factory: pytest.TempPathFactory, mean: list[float], std: list[float], rescale: float
) -> None:
    directory = tmp_path_factory.mktemp("settings")
    changed = {"size": 16, "image_mean": mean, "image_std": std, "rescale_factor": rescale}
    described(directory, changed, {"patch_size": 1, "pixel_shuffle_ratio": 1})
    every_level = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    assert_as_python(directory, [every_level])


def test_several_images_and_none(tmp_path: Path) -> None:
    described(tmp_path, {"size": 56})
    assert_as_python(tmp_path, [picture(48, 640), picture(9, 9), picture(600, 80)])
    assert_as_python(tmp_path, [])


def test_both_spellings_of_settings(tmp_path: Path) -> None:
    image = {"size": {"height": 28, "width": 28}, "max_patches": 3, "image_mean": 0.25}
    processor = {"patch_size": 7, "pixel_shuffle_ratio": 0.25}
    for directory in (
        described(tmp_path / "4", image, processor),
        described(tmp_path / "5", {"max_patches": 2}, {**processor, "image_processor": image}),
        described(tmp_path / "null", image, {**processor, "image_processor": None}),
    ):
        assert_as_python(directory, [picture(50, 120)])
        assert NativeImages(directory, [picture(50, 120)]).tiles.shape == (4, 3, 28, 28)
    with_mark = tmp_path / "4" / "preprocessor_config.json"
    with_mark.write_bytes(b"\xef\xbb\xbf" + with_mark.read_bytes())
    assert_as_python(tmp_path / "4", [picture(50, 120)])


HOSTILE: list[tuple[str, Any]] = [
    *(("max_patches", value) for value in (10**9, 257, 0, -1, 1.5, True, "16", None, [16], {"a": [None, 0.1]})),
    *(("image_std", value) for value in ([0.5, 0, 0.5], 0, [1e-9] * 3, [-0.5] * 3, [0.5, 0.5], [], "0.5", [None] * 3)),
    *(
        ("image_mean", value)
        for value in ([1e9] * 3, {"r": 1}, -1000.5, "it's", 'say "it\'s"', [1e16, 1e-5, 12345.678])
    ),
    *(("rescale_factor", value) for value in (1e30, True, None, 10**18)),
    *(("size", {"height": side, "width": side}) for side in (0, -336, 10**9, 336.5, None, "336")),
    *(("size", value) for value in ({"height": 336, "width": 224}, {"shortest_edge": 336}, [336, 336], 1e300, 2049)),
    *(("size", {"height": 56, "width": 56, "depth": 56}), ("size", {"height": 336, "width": 336.0})),
    *(("resize_to_max_canvas", value) for value in ("yes", 1, None)),
    *(("do_rescale", value) for value in (False, 1)),
    ("do_normalize", None),
    *(("resample", value) for value in (3, True, "2", 2.0, None)),
    *(("image_processor_type", value) for value in ("CLIPImageProcessor", "a\nb\x1b" + "é" * 80, None)),
]
HOSTILE_PROMPTS: list[tuple[str, Any]] = [
    *(("patch_size", value) for value in (0, -14, 57, 1.5)),
    *(("pixel_shuffle_ratio", value) for value in (0, -0.5, 0.4, 1 / 3, 1e-300, 2, "0.5", 1 / 56, 0.50000001)),
    *(("patch_token", "<|other|>"), ("image_token", None), ("image_processor", [1]), ("image_processor", "x" * 99)),
]


def assert_judged_as_python(directory: Path) -> None:
    """The same tiles, or the same refusal."""
    try:
        read_settings(directory)
    except InputError as error:
        with pytest.raises(NativeError) as caught:
            NativeImages(directory, [])
        assert caught.value.status == BAD_INPUT and str(caught.value) == str(error)
    else:
        assert_as_python(directory, [picture(5, 9)])


@pytest.mark.parametrize(("name", "value"), HOSTILE, ids=str)
def test_hostile_settings_are_judged_as_in_python(tmp_path: Path, name: str, value: Any) -> None:
    described(tmp_path, {"size": 56, name: value}, {"patch_size": 7})
    assert_judged_as_python(tmp_path)


@pytest.mark.parametrize(("name", "value"), HOSTILE_PROMPTS, ids=str)
def test_hostile_settings_of_prompts_are_judged_as_in_python(tmp_path: Path, name: str, value: Any) -> None:
    described(tmp_path, {"size": 56}, {"patch_size": 7, name: value})
    assert_judged_as_python(tmp_path)


BROKEN = [
    "",
    "[]",
    "{",
    "null",
    "[" * 100_000,
    '{"size": ' + "9" * 5000 + "}",
    '{"image_mean": NaN}',
    " " * (1 << 20) + "{}",
]


@pytest.mark.parametrize("text", BROKEN, ids=len)
def test_broken_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(NativeError, match=r"preprocessor_config.json: ") as caught:
        NativeImages(tmp_path, [])
    assert caught.value.status == BAD_INPUT and "\n" not in str(caught.value)


def test_directories_without_settings(tmp_path: Path) -> None:
    assert_judged_as_python(tmp_path)
    (tmp_path / "preprocessor_config.json").mkdir()
    assert_judged_as_python(tmp_path)


def test_a_directory_that_cannot_be_looked_at_is_no_defect_of_the_library(tmp_path: Path) -> None:
    with pytest.raises(NativeError, match=r"cannot be read \(File name too long\)") as error:
        NativeImages(tmp_path / ("x" * 300), [])
    assert error.value.status == STORAGE


def created(directory: Path | None, pictures: Any, count: int, max_tiles: int = 0) -> None:
    """Call `l4_images_create`, and close what it makes."""
    handle = ctypes.c_void_p()
    path = None if directory is None else os.fsencode(directory)
    create = native_library().l4_images_create
    check(create(path, pictures, ctypes.c_size_t(count), ctypes.c_int32(max_tiles), ctypes.byref(handle)))
    native_library().l4_images_close(handle)


SIZES = [
    (0, 1, "has 0 x 1 pixels"),
    (1, 0, "has 1 x 0 pixels"),
    (-1, 5, "has -1 x 5 pixels"),
    (5, -(2**63), "pixels"),
    (65_537, 1, "has 65537 x 1 pixels, but a side has 1 to 65536"),
    (8193, 8192, "the whole at most 64 million; scale it"),
    (2**32, 2**32, "pixels, but a side has"),  # the product is 0
    (2**63 - 1, 3, "pixels, but a side has"),
]


@pytest.mark.parametrize(("width", "height", "message"), SIZES)
def test_impossible_sizes_are_refused(tmp_path: Path, width: int, height: int, message: str) -> None:
    described(tmp_path, {})
    pixels = picture(1, 1)
    good = Picture(ctypes.sizeof(Picture), pixels.ctypes.data, 1, 1)
    bad = Picture(ctypes.sizeof(Picture), pixels.ctypes.data, width, height)
    with pytest.raises(NativeError, match=rf"^image 2: .*{message}") as caught:
        created(tmp_path, (Picture * 2)(good, bad), 2)
    assert caught.value.status == BAD_INPUT


@pytest.mark.parametrize("max_tiles", [-1, 257, 2**31 - 1, -(2**31)])
def test_impossible_numbers_of_tiles(tmp_path: Path, max_tiles: int) -> None:
    described(tmp_path, {})
    with pytest.raises(NativeError, match=rf"^max_tiles is {max_tiles}: give a whole number, 1 to 256$"):
        NativeImages(tmp_path, [picture(3, 3)], max_tiles)


def test_what_is_not_given(tmp_path: Path) -> None:
    described(tmp_path, {})
    none = (Picture * 1)(Picture(ctypes.sizeof(Picture), None, 1, 1))
    no_size = (Picture * 1)(Picture(0, picture(1, 1).ctypes.data, 1, 1))
    for directory, pictures, count, message in (
        (None, None, 0, "directory is NULL"),
        (tmp_path, None, 1, "an array is NULL"),
        (tmp_path, none, 1, "image 1: rgb is NULL"),
        (tmp_path, no_size, 1, "the size of a struct is not set"),
        (tmp_path, none, 2**63, "pictures: at most"),
    ):
        with pytest.raises(NativeError, match=message) as caught:
            created(directory, pictures, count)
        assert caught.value.status == BAD_INPUT
    created(tmp_path, None, 0)
    library = native_library()
    library.l4_images_close(None)
    assert library.l4_images_count(None) == 0
    images = NativeImages(tmp_path, [picture(3, 3)])
    with pytest.raises(NativeError, match="image 1: there are 1, from 0"):
        images._info(1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> NativeTokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    with_images().save(str(directory / "tokenizer.json"))
    return NativeTokenizer(directory)


TOKENS = ImageTokens.of(with_images(), 4, with_images().token_to_id("<|patch|>"))
IDS = st.lists(st.integers(0, 300) | st.just(TOKENS.image) | st.sampled_from([TOKENS.patch, TOKENS.row]), max_size=9)


@settings(deadline=None, max_examples=100)
@given(IDS, st.lists(st.sampled_from([(9, 9), (9, 30), (40, 20), (60, 45)]), max_size=4))
def test_prompts_are_expanded_as_in_python(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: NativeTokenizer, ids: list[int], shapes: list[tuple[int, int]]
) -> None:
    directory = described(tmp_path_factory.mktemp("settings"), {"size": 28}, {"patch_size": 7})
    pictures = [picture(*shape) for shape in shapes]
    images, grids = NativeImages(directory, pictures), ImageProcessor.open(directory)(pictures).grids
    try:
        expected = expand_images(ids, grids, TOKENS)
    except InputError as error:
        with pytest.raises(NativeError) as caught:
            images.expand(tokenizer.handle, ids)
        assert caught.value.status == BAD_INPUT and str(caught.value) == str(error)
    else:
        assert images.expand(tokenizer.handle, ids) == expected


@pytest.mark.parametrize("name", IMAGE)
def test_prompts_without_images(tokenizer: NativeTokenizer, name: str) -> None:
    assert expand(None, tokenizer.handle, [5, 6, 5]) == [5, 6, 5]
    spelled = tokenizer.encode(f"a{name}")
    with pytest.raises(NativeError, match=r"prompt: (spells|has 1 placeholders <\|image\|> for 0 images)"):
        expand(None, tokenizer.handle, spelled)


def test_tokenizers_without_the_tokens_of_images(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = NativeTokenizer(tmp_path)
    assert expand(None, tokenizer.handle, [5, 6]) == [5, 6]
    images = NativeImages(described(tmp_path, {}), [picture(3, 3)])
    with pytest.raises(NativeError, match=r"tokenizer: has no token <\|image\|>, which images need; copy it"):
        images.expand(tokenizer.handle, [5])
    with pytest.raises(NativeError, match="tokenizer is NULL"):
        images.expand(ctypes.c_void_p(), [5])
