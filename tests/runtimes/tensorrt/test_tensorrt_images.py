"""Images through the TensorRT runtime: its bindings on stand-ins, executed by a CPU, against transformers."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_client import transformers_logits
from seeing import PATCH, prompt, seeing_checkpoint, seen

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.manifest import load_manifest
from l4export.engine.vision_interface import TILES_PER_CALL
from l4export.errors import InputError
from l4export.runtimes.tensorrt.plan import tensorrt_plan
from workshop import assert_close

pytest.importorskip("tensorrt_rtx")
import tensorrt_stand_ins as stand_ins


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeing_checkpoint(tmp_path_factory.mktemp("see") / "c")


@pytest.fixture(scope="module")
def directory(checkpoint: Path) -> Path:
    path = checkpoint.parent / "engine"
    options = BuildOptions(
        target="tensorrt-rtx", dtype="fp32", kv_layout="chunked", max_context=96, compute_capabilities=("8.9",)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("l4export.targets.tensorrt.finish.compile_engine", lambda *a: a[2].write_bytes(b"not compiled"))
        build(checkpoint, path, options)
    return path


@pytest.fixture
def loaded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The engine on a GPU of stand-ins; a tower is deserialised after the decoder."""
    manifest, driver = load_manifest(directory), stand_ins.Driver()
    assert manifest.vision is not None
    decoder, tower = directory / "decoder.onnx", directory / "vision.onnx"
    made = [
        stand_ins.Engine(decoder, stand_ins.parsed(decoder, tensorrt_plan(manifest).profiles), driver),
        stand_ins.Engine(tower, stand_ins.parsed(tower, [TILES_PER_CALL]), driver, manifest.vision.rows_per_tile),
    ]
    module = stand_ins.runtime_module(made)
    left = list(made)
    monkeypatch.setattr(module.Runtime, "deserialize_cuda_engine", lambda *_: left.pop(0))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    return runtimes.load(directory), left


def test_a_prompt_with_images(directory: Path, checkpoint: Path, loaded: Any, tmp_path: Path) -> None:
    """Calls have as many rows of features as image tokens, none for text; the tower is loaded when it is needed."""
    engine, left = loaded
    images = seen(directory, [(14, 30), (9, 9)])
    ids = prompt(images, [5, 6, 9])
    session = engine.session()
    assert_close(session.append([1, 2, 3], last_only=True), engine.session().append([1, 2, 3], last_only=True))
    session.reset()
    assert len(left) == 1
    expected = transformers_logits(checkpoint, ids[None], images.tiles, tmp_path)[0]
    assert_close(session.append(ids[:-3], images=images)[0], expected[:-3])
    assert not left
    for at in range(len(ids) - 3, len(ids)):
        assert_close(session.append(ids[at : at + 1])[0], expected[at : at + 1])
    greedy = list(engine.generate(ids.tolist(), 3, images=images, stop_token_ids=()))
    assert greedy[0] == expected[-1].argmax()


def test_what_the_graph_cannot_refuse_the_runtime_does(directory: Path, loaded: Any) -> None:
    engine, _ = loaded
    images = seen(directory, [(9, 9)])
    ids = prompt(images, [2, 3])
    for tokens, given in ((ids, None), (ids[:5], images), ([*ids, PATCH], images)):
        with pytest.raises(InputError, match="image tokens"):
            engine.session().append(tokens, images=given)
    tower = engine.features
    with pytest.raises(InputError, match=r"tiles are \[1, 3, 8, 8\]"):
        tower._compute(np.zeros((1, 3, 8, 8), np.float32))
