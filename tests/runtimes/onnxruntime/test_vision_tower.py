"""Features of images from an engine that ONNX Runtime executes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from image_client import ImageClient
from tiny_vision import pixels

from l4export import runtimes
from l4export.checkpoint.sample import write_sample
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.errors import InputError
from l4export.runtimes.cache.device_cache import DeviceCache
from l4export.runtimes.onnxruntime.device import OnnxRuntimeDevice
from l4export.runtimes.onnxruntime.engine import OnnxRuntimeEngine
from l4export.runtimes.onnxruntime.execution import cuda_plan
from l4export.runtimes.session import Session
from l4export.storage.file_records import file_record
from workshop import Workshop, assert_close, random_ids


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("see") / "c"
    write_sample(path, "guard", "tiny", seed=3, vision=True)
    return path


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> OnnxRuntimeEngine:
    build(checkpoint, checkpoint.parent / "e", BuildOptions(max_context=64))
    opened = runtimes.load(checkpoint.parent / "e", threads=1)
    assert isinstance(opened, OnnxRuntimeEngine)
    return opened


def test_features_of_any_number_of_tiles(engine: OnnxRuntimeEngine) -> None:
    tiles = pixels(40, 16)  # three calls
    expected = ImageClient(engine.directory).features(tiles)
    np.testing.assert_array_equal(engine.image_features(tiles), expected)
    np.testing.assert_array_equal(engine.image_features(tiles[7:8]), expected[28:32])


@pytest.mark.parametrize(
    ("tiles", "problem"),
    [
        (pixels(1, 16)[0], r"tiles are \[3, 16, 16\]: give an array of shape \[1 or more, 3, 16, 16\]"),
        (pixels(1, 32), r"tiles are \[1, 3, 32, 32\]"),
        (pixels(1, 16)[:0], r"tiles are \[0, 3, 16, 16\]"),
        ("a.png", "tiles are 'a.png': give an array"),
        (pixels(1, 16).astype(np.float64), "tiles are of float64"),
        (pixels(1, 16) * np.float32(np.nan), "not all finite"),
    ],
)
def test_what_is_no_tiles_is_refused(engine: OnnxRuntimeEngine, tiles: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        engine.image_features(tiles)


def test_an_engine_without_a_tower_says_so(workshop: Workshop) -> None:
    with pytest.raises(InputError, match="sees no images; build it from a checkpoint with a vision tower"):
        workshop.engine("guard", "static").image_features(pixels(1, 16))  # type: ignore[attr-defined]


def test_a_damaged_tower_is_found(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, tmp_path / "e", BuildOptions(max_context=64))
    (tmp_path / "e" / "vision.onnx").write_bytes(b"x" * (tmp_path / "e" / "vision.onnx").stat().st_size)
    with pytest.raises(InputError, match=r"vision\.onnx"):
        runtimes.load(tmp_path / "e")


def test_cuda_graphs_give_the_same_on_a_cpu(checkpoint: Path, engine: OnnxRuntimeEngine, tmp_path: Path) -> None:
    """fp16 on the CPU in CUDA's place, and text through buffers of a device, which bind features without rows."""
    build(checkpoint, tmp_path / "e", BuildOptions(target="ort-cuda", kv_layout="chunked", max_context=64))
    opened = runtimes.load(tmp_path / "e", threads=1, provider="cpu")
    assert isinstance(opened, OnnxRuntimeEngine)
    tiles, plan = pixels(2, 16), cuda_plan(opened.manifest)
    got = opened.image_features(tiles)
    assert got.dtype == np.float16
    assert_close(got.astype(np.float32), engine.image_features(tiles), 1e-2)  # 11 bits at every step

    def new_cache(manifest: Any, batch: int, capacity: int) -> DeviceCache:
        return DeviceCache(OnnxRuntimeDevice([opened.inference], "cpu"), plan, manifest, batch, capacity)

    ids = random_ids(20, 230)
    for tokens in (ids, [3]):
        np.testing.assert_array_equal(
            *(session.append(tokens) for session in (Session(new_cache, opened.manifest, 1, 64), opened.session()))
        )


@pytest.mark.parametrize("problem", ["has other inputs or outputs than manifest.json declares", "cannot load it"])
def test_a_tower_that_the_manifest_does_not_describe(engine: OnnxRuntimeEngine, tmp_path: Path, problem: str) -> None:
    path = Path(shutil.copytree(engine.directory, tmp_path / "e"))
    graph = onnx.load(path / "vision.onnx", load_external_data=False)
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "pictures"
    if problem == "cannot load it":
        graph.graph.node[0].op_type = "x\x1b[31m"
    (path / "vision.onnx").write_bytes(graph.SerializeToString())
    raw = json.loads((path / "manifest.json").read_text())
    raw["files"]["vision.onnx"] = vars(file_record(path / "vision.onnx"))
    (path / "manifest.json").write_text(json.dumps(raw))
    opened = runtimes.load(path, threads=1)
    assert isinstance(opened, OnnxRuntimeEngine)
    with pytest.raises(InputError, match=problem) as caught:
        opened.image_features(pixels(1, 16))
    assert str(caught.value).isprintable()
