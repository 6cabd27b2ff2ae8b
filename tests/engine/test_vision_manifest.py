"""Manifests of engines that see images."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from l4export.checkpoint.sample import write_sample
from l4export.errors import InputError
from manifests import KINDS, SCHEMA, planned_manifest, read


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    path: Path = tmp_path_factory.mktemp("seeing") / "c"
    write_sample(path, "scout", "tiny", seed=3, vision=True)
    return {kind: planned_manifest(path, **KINDS[kind]) for kind in ("static", "tensorrt-parts")}


@pytest.mark.parametrize("kind", ["static", "tensorrt-parts"])
def test_it_is_read_and_written_as_it_is(seeing: dict[str, dict[str, Any]], kind: str) -> None:
    raw = seeing[kind]
    SCHEMA.validate(raw)
    manifest = read(json.dumps(raw))
    assert json.loads(manifest.to_json()) == raw
    assert manifest.requires == ("vision",) and manifest.vision is not None and manifest.vision.rows_per_tile == 4
    takes = [value.name for value in manifest.decoder.inputs if value.name == "image_features"]
    assert takes and [part.layers for part in manifest.graphs["vision"].parts] == ([] if kind == "static" else [(0, 2)])


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda raw: raw.update(requires=[]), "requires lacks vision, which the manifest has"),
        (lambda raw: raw["precision"].pop("vision"), "precision.vision lacks vision"),
        (lambda raw: raw.pop("vision"), "requires has vision, which the manifest lacks"),
        (lambda raw: raw["graphs"].pop("vision"), "graphs.vision lacks vision, which the manifest has"),
        (lambda raw: raw["vision"].update(image_token_id=256), "vision.image_token_id is 256, outside the vocabulary"),
        (lambda raw: raw["vision"].update(image_size=20), "vision: pixel_shuffle_ratio is 0.5, which does not cut 5x5"),
        (lambda raw: raw["vision"].update(image_size=32), "graphs.vision.inputs are not pixel_values alone"),
        (lambda raw: raw["vision"].pop("patch_size"), "vision: patch_size is missing"),
        (lambda raw: raw["graphs"]["vision"]["outputs"].clear(), "graphs.vision.outputs are not image_features alone"),
        (lambda raw: raw["graphs"]["vision"].update(file="x.onnx"), "graphs.vision.file is 'x.onnx', which is not"),
        (lambda raw: _features(raw).update(dtype="float16"), "of image_features is float16; expected float32"),
        (lambda raw: _features(raw).update(name="pixels"), "'pixels', which a decoder of these layers does not have"),
    ],
)
def test_a_contradiction_is_refused(
    seeing: dict[str, dict[str, Any]], edit: Callable[[dict[str, Any]], Any], words: str
) -> None:
    raw = copy.deepcopy(seeing["static"])
    edit(raw)
    with pytest.raises(InputError, match="build the engine again") as error:
        read(json.dumps(raw))
    assert words in str(error.value)


def test_a_compiled_tower_is_one_engine_with_tiles(seeing: dict[str, dict[str, Any]]) -> None:
    for edit, words in (
        (lambda tower: tower["profiles"][0].pop("tiles"), r"profiles\[0\]\.tiles is missing"),
        (lambda tower: tower["parts"].append(tower["parts"][0]), "parts are several"),
        (lambda tower: tower["parts"][0]["inputs"].clear(), r"parts\[0\]\.inputs are not pixel_values alone"),
    ):
        raw = copy.deepcopy(seeing["tensorrt-parts"])
        edit(raw["graphs"]["vision"])
        with pytest.raises(InputError, match=words):
            read(json.dumps(raw))


def _features(raw: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(
        value for value in raw["graphs"]["decoder"]["inputs"] if value["name"] == "image_features"
    )
    return found
