"""An ONNX Runtime that is older than an engine's graphs need is refused before it loads one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from seeing import seeing_checkpoint

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.errors import EnvironmentLacks
from workshop import Workshop


def with_least(engine: Path, to: Path, graph: str, least: str | None) -> Path:
    """A copy of an engine whose manifest has another least version of a graph, or none."""
    shutil.copytree(engine, to, copy_function=os.link)
    manifest: dict[str, Any] = json.loads((to / "manifest.json").read_text())
    manifest["graphs"][graph]["runtime"].pop("min_version")
    if least is not None:
        manifest["graphs"][graph]["runtime"]["min_version"] = least
    (to / "manifest.json").unlink()
    (to / "manifest.json").write_text(json.dumps(manifest))
    return to


@pytest.mark.parametrize("version", ["1.23.2", "1.9.0", "0.9", "none"])
def test_an_older_one_is_refused(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    path = workshop.engine_path("scout", "static")
    monkeypatch.setattr(onnxruntime, "__version__", version)
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)  # nothing is loaded
    with pytest.raises(EnvironmentLacks) as caught:
        runtimes.load(path)
    assert str(caught.value) == (
        f"{path}/decoder.onnx: needs ONNX Runtime 1.24 or later, and {version} is installed; "
        "pip install --upgrade 'l4export[cpu]'"
    )


@pytest.mark.parametrize("version", ["1.24.0", "1.31.1", "1.100.0", "2.0", "1.33.0.dev20270101"])
def test_a_newer_one_is_not(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    runtimes.load(workshop.engine_path("scout", "static"))


def test_an_engine_of_before_manifests_said_it(workshop: Workshop, tmp_path: Path) -> None:
    """Nothing is known of it, and ONNX Runtime has the say, as it had then."""
    runtimes.load(with_least(workshop.engine_path("scout", "static"), tmp_path / "e", "decoder", None))


def test_the_vision_tower_counts(tmp_path: Path) -> None:
    """It is loaded with the first image, and an engine that cannot see is refused before."""
    build(seeing_checkpoint(tmp_path / "c"), tmp_path / "built", BuildOptions(max_context=64))
    path = with_least(tmp_path / "built", tmp_path / "e", "vision", "999.0")
    with pytest.raises(EnvironmentLacks, match=r"e/vision\.onnx: needs ONNX Runtime 999\.0 or later"):
        runtimes.load(path)
