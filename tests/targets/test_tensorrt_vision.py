"""Engines that see images, compiled by TensorRT for RTX without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from l4export.checkpoint import sample_vision
from l4export.checkpoint.sample import write_sample
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.manifest import load_manifest

pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize(
    ("dtype", "layout"), [("fp16", "static"), pytest.param("fp32", "chunked", marks=pytest.mark.slow)]
)
def test_tower_and_merged_decoder_are_compiled(tmp_path: Path, dtype: str, layout: str) -> None:
    write_sample(tmp_path / "c", "maverick", "tiny", seed=0, vision=True)
    options = BuildOptions(
        target="tensorrt-rtx", dtype=dtype, kv_layout=layout, max_context=64, compute_capabilities=("8.9",)
    )
    build(tmp_path / "c", tmp_path / "e", options)
    manifest = load_manifest(tmp_path / "e")
    tower = manifest.graphs["vision"]
    assert tower.profiles == ({"tiles": (1, 5, 17)},) and [part.engine for part in tower.parts] == ["vision.engine"]
    assert manifest.files["vision.engine"].bytes > 10_000
    features = next(value for value in manifest.decoder.parts[0].inputs if value.name == "image_features")
    assert not features.optional and features.shape == ("image_tokens", 64)


@pytest.mark.slow
def test_a_tower_of_the_released_size_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """34 layers, 871 million parameters less what the projector to a small decoder lacks, for three GPUs at once."""
    monkeypatch.setitem(sample_vision._SHAPES, "tiny", sample_vision._SHAPES["full"])
    write_sample(tmp_path / "c", "scout", "tiny", seed=0, vision=True)
    capabilities = ("8.0", "8.9", "12.0")
    options = BuildOptions(target="tensorrt-rtx", dtype="fp16", max_context=64, compute_capabilities=capabilities)
    build(tmp_path / "c", tmp_path / "e", options)
    manifest = load_manifest(tmp_path / "e")
    assert manifest.vision is not None and manifest.vision.num_hidden_layers == 34
    assert manifest.files["vision.engine"].bytes > 2 * 850e6  # float16
