"""Settings of images as transformers 4 and 5 write them, and hostile ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from l4export.errors import InputError
from l4export.runtimes.images.processor import ImageProcessor
from l4export.runtimes.images.settings import ImageSettings, read_settings

IMAGE: dict[str, Any] = {
    "crop_size": None,
    "data_format": "channels_first",
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_processor_type": "Llama4ImageProcessorFast",
    "image_std": [0.5, 0.6, 0.7],
    "max_patches": 9,
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 112, "width": 112},
}
PROCESSOR = {"image_token": "<|image|>", "patch_size": 7, "pixel_shuffle_ratio": 0.25}
EXPECTED = ImageSettings(112, 9, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7), 0.00392156862745098, False, 7, 4)


def write(directory: Path, preprocessor: Any, processor: Any) -> Path:
    for name, value in {"preprocessor_config.json": preprocessor, "processor_config.json": processor}.items():
        if value is not None:
            (directory / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return directory


def test_both_spellings(tmp_path: Path) -> None:
    assert read_settings(write(tmp_path, IMAGE, PROCESSOR)) == EXPECTED
    assert EXPECTED.rows_of_a_tile == 16
    (tmp_path / "preprocessor_config.json").unlink()
    assert read_settings(write(tmp_path, None, {**PROCESSOR, "image_processor": IMAGE})) == EXPECTED
    other = {**IMAGE, "max_patches": 2}  # the older file counts where the newer form is absent
    assert read_settings(write(tmp_path, other, {**PROCESSOR, "image_processor": IMAGE})) == EXPECTED


def test_what_transformers_takes_for_granted(tmp_path: Path) -> None:
    assert ImageSettings().rows_of_a_tile == 144
    assert read_settings(write(tmp_path, {}, None)) == ImageSettings()
    assert ImageProcessor.open(write(tmp_path, {"size": 336, "image_mean": 0.5}, None)).settings == ImageSettings()


HOSTILE: list[tuple[str, Any]] = [
    *(("max_patches", value) for value in (10**9, 257, 0, -1, 1.5, True, "16", None, [16])),
    *(("image_std", value) for value in ([0.5, 0, 0.5], 0, [1e-9] * 3, [-0.5] * 3, [0.5, 0.5], [], "0.5", [None] * 3)),
    *(("image_mean", value) for value in (float("nan"), [float("inf")] * 3, [1e9] * 3, {"r": 1})),
    *(("rescale_factor", value) for value in (float("nan"), 1e30, True, None)),
    *(("size", {"height": side, "width": side}) for side in (0, -336, 10**9, 336.5, None)),
    *(("size", value) for value in ({"height": 336, "width": 224}, {"shortest_edge": 336}, [336, 336], 1e300)),
    ("resize_to_max_canvas", "yes"),
    ("do_rescale", False),
    ("do_normalize", None),
    ("resample", 3),
    ("image_processor_type", "CLIPImageProcessor"),
]


@pytest.mark.parametrize(("name", "value"), HOSTILE, ids=str)
def test_hostile_settings_are_refused_by_name(tmp_path: Path, name: str, value: Any) -> None:
    write(tmp_path, {**IMAGE, name: value}, PROCESSOR)
    with pytest.raises(InputError, match=rf"preprocessor_config.json: {name} is ") as caught:
        read_settings(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("patch_size", value) for value in (0, -14, 113, 1.5)),
        *(("pixel_shuffle_ratio", value) for value in (0, -0.5, float("nan"), 0.4, 1 / 3, 1e-300, 2)),
        ("patch_token", "<|other|>"),
        ("image_processor", [1]),
    ],
    ids=str,
)
def test_hostile_settings_of_prompts_are_refused_by_name(tmp_path: Path, name: str, value: Any) -> None:
    write(tmp_path, IMAGE, {**PROCESSOR, name: value})
    with pytest.raises(InputError, match=rf"config.json: {name} is "):
        read_settings(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, '{"size": ' + "9" * 10_000 + "}"], ids=len)
def test_broken_files_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"preprocessor_config.json: .*copy it|size is .*: give"):
        read_settings(write(tmp_path, text, None))


def test_a_directory_without_settings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"preprocessor_config.json: there is none, and images need"):
        ImageProcessor.open(write(tmp_path, None, PROCESSOR))
