"""What a vision tower takes, and the tokens of an image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from l4export.checkpoint import read_config, read_vision_config
from l4export.checkpoint.hf_config import config_from_hf
from l4export.checkpoint.hf_vision import vision_from_hf
from l4export.checkpoint.sample import hf_config, write_sample
from l4export.checkpoint.sample_vision import whole_config
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.errors import InputError
from l4export.model.vision_config import VisionConfig
from l4export.quantization.policy import standard_policy
from l4export.runtimes.images.prompt import ImageTokens
from l4export.sizing.engine_size import EngineSize, EngineSizes
from l4export.sizing.memory_plan import plan, plan_memory
from l4export.sizing.vision_need import image_tokens, vision_need


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("see") / "scout"
    write_sample(path, "scout", "tiny", seed=3, vision=True)
    return path


def tower(size: str) -> VisionConfig:
    raw = whole_config(hf_config("scout", size), "scout", size)
    return vision_from_hf(raw, "scout", raw["text_config"]["vocab_size"])


@pytest.mark.parametrize(("quant", "dtype", "vision_dtype"), [("int8", "fp32", "fp16"), ("none", "fp16", None)])
def test_planned_bytes_are_those_of_the_files(
    checkpoint: Path, tmp_path: Path, quant: str, dtype: str, vision_dtype: str | None
) -> None:
    """Of the tower and of the decoder that takes its features."""
    options = BuildOptions(
        dtype=dtype, vision_dtype=vision_dtype, policy=standard_policy(quant), max_context=250, jobs=1
    )
    build(checkpoint, tmp_path / "e", options)
    written = [
        sum(file.stat().st_size for file in (tmp_path / "e").glob(f"{name}*.data")) for name in ("vision", "decoder")
    ]
    config, vision = read_config(checkpoint), read_vision_config(checkpoint)
    assert vision is not None
    need = vision_need(vision, config.hidden_size, "ort-cpu", vision_dtype or dtype, dtype)
    decoder = EngineSizes(config, "ort-cpu", vision.image_token_id).size(quant, dtype, "static", dtype, 250)
    assert [need.weights, decoder.data] == written


def test_the_released_tower() -> None:
    """871,932,416 parameters, two tables of 577 x 44, and less than a page for each of 559 tensors.

    A tile has 336 x 336 pixels, and the widths are 1408, 5632, 4096 and 5120.
    """
    need = vision_need(tower("full"), 5120, "ort-cpu", "fp32", "fp32")
    assert 0 < need.weights - 4 * 871_932_416 < 600 * 4096
    tile = 4 * (3 * 336**2 + 577 * (8 * 1408 + 3 * 5632) + 144 * (5632 + 2 * 4096 + 2 * 5120))
    assert (need.working, need.features) == (17 * tile, 17 * 144 * 5120 * 4)
    assert need.total == need.weights + need.working + need.features


def test_the_cpu_multiplies_halves_as_floats() -> None:
    full, half = (vision_need(tower("bench"), 2048, "ort-cpu", dtype, "fp32") for dtype in ("fp32", "fp16"))
    assert half.weights == pytest.approx(full.weights / 2, rel=1e-3)
    assert half.working == full.working + half.weights + 17 * 4 * 577 * 2 * 1408  # casts of what lies between
    assert half.features == full.features
    assert vision_need(tower("bench"), 2048, "ort-cpu", "fp16", "fp16").features == full.features // 2


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 1), (2, 3), (4, 4), (3, 5), (16, 1)])
def test_tokens_of_an_image(grid: tuple[int, int]) -> None:
    """As many as the prompt has; the released tower makes 144 rows of a tile."""
    config, tiles = tower("full"), grid[0] * grid[1] + (grid != (1, 1))
    written = ImageTokens(0, 1, 2, 3, 4, 5, config.rows_per_tile).block(grid)
    assert image_tokens(config, tiles) == len(written)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the sizes of decoders, which have their own test: 1 MB."""

    class Sizes:
        def __init__(self, *_: object) -> None:
            pass

        def constants(self, *_: object) -> tuple[int, ...]:
            return ()

        def size(self, *_: object) -> EngineSize:
            return EngineSize(10**6, 0, 0)

    monkeypatch.setattr("l4export.sizing.memory_plan.EngineSizes", Sizes)


def test_a_tower_leaves_less_for_the_context(checkpoint: Path, sizes: None) -> None:
    """As much as its bytes; the decoder is as large as without one."""
    blind = plan(checkpoint, vision="none", context=1000)
    assert blind.vision is None and {need.vision for need in blind.needs} == {None}
    seeing = plan(checkpoint, context=1000)
    for one, other in zip(blind.needs, seeing.needs, strict=True):
        assert other.vision is not None and other.total - one.total == other.vision.total > 0
        assert other.vision.dtype == other.combination.dtype and other.weights == one.weights
    assert {need.vision.dtype for need in plan(checkpoint, vision_dtype="fp16").needs if need.vision} == {"fp16"}
    device, tower_bytes = blind.needs[0].total, seeing.needs[0].total - blind.needs[0].total
    for memory, fits in ((device, False), (device + tower_bytes, True)):
        need = plan(checkpoint, memory, 1000).needs[0]
        assert need.total == device + tower_bytes and need.max_context is not None
        assert (need.max_context >= 1000) == (need.total <= memory) == fits


def test_a_gpu_holds_the_tower(sizes: None) -> None:
    """In float16, without the copies that a CPU makes; what its allocator rounds is counted."""
    config = config_from_hf(hf_config("guard", "tiny"), "guard")
    seeing = plan_memory(config, 80 * 10**9, 1000, 1, "ort-cuda", tower("tiny"))
    blind = plan_memory(config, 80 * 10**9, 1000, 1, "ort-cuda")
    assert seeing.needs
    for one, other in zip(blind.needs, seeing.needs, strict=True):
        assert other.vision is not None and other.vision.dtype == "fp16"
        assert other.total - one.total == other.vision.total > other.vision.weights
    need = vision_need(tower("full"), 5120, "ort-cuda", "fp16", "fp16")
    tile = 4 * 3 * 336**2 + 2 * (577 * (10 * 1408 + 3 * 5632) + 144 * (5632 + 2 * 4096 + 2 * 5120))
    assert (need.working, need.features) == (need.weights // 20 + 17 * tile, 17 * 144 * 5120 * 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vision": "none", "vision_dtype": "fp16"}, "nothing is built for --vision none"),
        ({"vision_dtype": "bf16"}, "no bfloat16 MatMul; use fp32 or fp16"),
        ({"vision": "some"}, "--vision some is not one of auto, none"),
    ],
)
def test_options_are_refused_as_a_build_refuses_them(checkpoint: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan(checkpoint, **options)  # type: ignore[arg-type]


def test_a_config_without_a_tower(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hf_config("scout", "tiny")))
    assert read_vision_config(tmp_path) is None
    with pytest.raises(InputError, match=r"--vision-dtype: .* has no vision_config; leave it out"):
        plan(tmp_path, vision_dtype="fp16")


def test_a_tower_that_cannot_be_built_can_be_left_out(checkpoint: Path, tmp_path: Path, sizes: None) -> None:
    raw = json.loads((checkpoint / "config.json").read_text())
    raw["vision_config"]["patch_size"] = 5
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="no multiple of patch_size 5"):
        plan(tmp_path, context=100)
    assert plan(tmp_path, context=100, vision="none").vision is None
