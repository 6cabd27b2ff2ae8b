"""Prompts with images through built engines, against transformers with the same pixel values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_client import ImageClient, transformers_logits
from tiny_vision import pixels

from l4export import runtimes
from l4export.checkpoint.sample import write_sample
from l4export.checkpoint.sample_vision import VISION_VARIANTS
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.companions import is_companion
from l4export.engine.manifest import verify_files
from l4export.errors import InputError
from l4export.runtimes.session import Session
from workshop import LAYOUTS, assert_close, random_ids

IMAGE = 236
LENGTH = 42  # three chunks of 16 tokens


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("see")
    for variant in VISION_VARIANTS:
        write_sample(root / variant, variant, "tiny", seed=3, vision=True)
    return {variant: root / variant for variant in VISION_VARIANTS}


def prompt(seed: int = 0) -> np.ndarray:
    """Text with three tiles of 4 rows: two side by side across the end of a chunk, one alone."""
    ids = random_ids(LENGTH, 230, seed)
    ids[12:20] = ids[30:34] = IMAGE
    return ids


@pytest.mark.parametrize("variant", VISION_VARIANTS)
def test_logits_are_those_of_transformers_however_a_prompt_is_cut(
    checkpoints: dict[str, Path], variant: str, tmp_path: Path
) -> None:
    ids, tiles = prompt(), pixels(3, 16)
    expected = transformers_logits(checkpoints[variant], ids[None], tiles, tmp_path / "scratch")[0]
    for layout in LAYOUTS:
        engine = tmp_path / layout
        build(checkpoints[variant], engine, BuildOptions(kv_layout=layout, max_context=64))
        features = ImageClient(engine).features(tiles)
        whole = [16, 32] if layout == "chunked" else []
        for cuts in (whole, [5, 13, 16, 18, 31, 32, 33], list(range(1, LENGTH))):
            assert_close(ImageClient(engine).feed(ids, features, cuts), expected)
        opened = runtimes.load(engine, threads=1)
        blind = Session(opened.new_cache, opened.manifest, 1)
        assert np.abs(blind.append(ids)[0] - expected).max() > 0.1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_any_length_side_by_side(checkpoints: dict[str, Path], layout: str, tmp_path: Path) -> None:
    """Features lie row by row; the second row has no image, the fourth only one."""
    counts = [15, 9, 12, 6]
    ids = np.zeros((4, 15), np.int64)
    for row, count in enumerate(counts):
        ids[row, :count] = random_ids(count, 230, seed=row)
    ids[0, 3:11] = ids[2, 8:12] = ids[3, 0:4] = IMAGE
    tiles = pixels(4, 16)
    build(checkpoints["scout"], tmp_path / "e", BuildOptions(kv_layout=layout, max_context=64))
    client = ImageClient(tmp_path / "e", rows=4)
    rows = client.features(tiles)
    logits = client.call(ids, counts, rows)
    step = client.call(np.full((4, 1), IMAGE), [1] * 4, rows[:4])
    used = 0
    for row, count in enumerate(counts):
        own = ids[row, :count]
        mine = int((own == IMAGE).sum()) // 4
        alone = ImageClient(tmp_path / "e")
        features = np.concatenate([rows[4 * used : 4 * (used + mine)], rows[row : row + 1]])
        expected = alone.feed(np.append(own, IMAGE), features, [count])
        assert_close(logits[row, :count], expected[:count])
        assert_close(step[row], expected[count:])
        used += mine


def test_the_standard_target_says_the_same(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    ids, tiles = prompt(), pixels(3, 16)
    expected = transformers_logits(checkpoints["maverick"], ids[None], tiles, tmp_path / "scratch")[0]
    for layout in ("static", "chunked"):
        options = BuildOptions(target="onnx", kv_layout=layout, max_context=64)
        build(checkpoints["maverick"], tmp_path / layout, options)
        client = ImageClient(tmp_path / layout)
        assert_close(client.feed(ids, client.features(tiles), [13, 16, 32]), expected)


def test_a_quantised_decoder_takes_features_too(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The embedding has codes, and the tower none."""
    from l4export.quantization.policy import standard_policy

    manifest = build(checkpoints["scout"], tmp_path / "e", BuildOptions(max_context=64, policy=standard_policy("int8")))
    plain = build(checkpoints["scout"], tmp_path / "f", BuildOptions(max_context=64))
    towers = [{name: file for name, file in m.files.items() if name.startswith("vision")} for m in (manifest, plain)]
    assert towers[0] == towers[1] and len(towers[0]) == 2
    ids, tiles = prompt(), pixels(3, 16)
    got, expected = ((client := ImageClient(tmp_path / name)).feed(ids, client.features(tiles)) for name in ("e", "f"))
    # 8 bits a weight and an activation; where two experts are nearly tied the other may be chosen
    assert np.median(np.abs(got - expected).max(axis=1)) <= 5e-2 * np.abs(expected).max()


def test_another_number_of_rows_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    build(checkpoints["guard"], tmp_path / "e", BuildOptions(max_context=64))
    client = ImageClient(tmp_path / "e")
    features = client.features(pixels(3, 16))
    for rows in (features[:11], np.concatenate([features, features[:1]])):
        with pytest.raises(Exception, match="image_features_must_match_image_tokens"):
            client.call(prompt()[None], [LENGTH], rows)


# What is built


def test_without_images_an_engine_says_what_it_said(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The bytes of a text engine, with --vision none; the same logits, bit for bit, with a tower beside it."""
    plain = tmp_path / "plain"
    write_sample(plain, "scout", "tiny", seed=3)
    text = build(plain, tmp_path / "text", BuildOptions(max_context=64))
    none = build(checkpoints["scout"], tmp_path / "none", BuildOptions(max_context=64, vision="none"))
    seeing = build(checkpoints["scout"], tmp_path / "seeing", BuildOptions(max_context=64))
    ours = {name: file for name, file in none.files.items() if not is_companion(name)}
    assert ours == text.files and none.vision is None and not none.requires and "vision" not in none.to_json()
    name = "decoder-00001-of-00001.data"
    assert seeing.files[name] == text.files[name] and seeing.requires == ("vision",)
    ids = random_ids(40, 230)
    got, expected = (runtimes.load(tmp_path / engine, threads=1).session().append(ids) for engine in ("seeing", "text"))
    np.testing.assert_array_equal(got, expected)


def test_a_tower_has_a_dtype_of_its_own(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    full = build(checkpoints["guard"], tmp_path / "full", BuildOptions(max_context=64))
    half = build(checkpoints["guard"], tmp_path / "half", BuildOptions(max_context=64, vision_dtype="fp16"))
    assert (half.precision["vision"], half.precision["compute"]) == ("fp16", "fp32")
    name = "vision-00001-of-00001.data"
    assert half.files[name].bytes < full.files[name].bytes  # pages of 4 KiB hide that it is a half
    tiles = pixels(2, 16)
    got, expected = (ImageClient(tmp_path / engine).features(tiles) for engine in ("half", "full"))
    assert got.dtype == np.float32
    assert_close(got, expected, 1e-2)  # 11 bits at every step
    back = build(
        checkpoints["guard"], tmp_path / "back", BuildOptions(max_context=64, dtype="fp16", vision_dtype="fp32")
    )
    assert back.files[name] == full.files[name]
    assert ImageClient(tmp_path / "back").features(tiles).dtype == np.float16


def test_a_policy_may_name_the_tower(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    from l4export.quantization.policy import Policy, Rule

    policy = Policy((Rule(("vision_model.model.layers.*_proj.weight", "vision_model.*.fc?.weight"), "int8"),))
    manifest = build(checkpoints["guard"], tmp_path / "e", BuildOptions(max_context=64, policy=policy))
    assert manifest.precision["quant"] == "int8"
    build(checkpoints["guard"], tmp_path / "full", BuildOptions(max_context=64))
    tiles = pixels(2, 16)
    got, expected = (ImageClient(tmp_path / engine).features(tiles) for engine in ("e", "full"))
    # 8 bits a weight and an activation, in blocks of 16 and 32
    assert 1e-4 * np.abs(expected).max() < np.abs(got - expected).max() < 5e-2 * np.abs(expected).max()
    with pytest.raises(InputError, match="names no weight of this model"):
        build(checkpoints["guard"], tmp_path / "n", BuildOptions(max_context=64, policy=policy, vision="none"))


def test_a_rebuild_takes_over_the_weights_of_both_graphs(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    def again(**changes: Any) -> str:
        told: list[str] = []
        build(checkpoints["guard"], engine, BuildOptions(max_context=64, force=True, **changes), on_notice=told.append)
        return told[-1] if told else ""

    engine = tmp_path / "e"
    first = build(checkpoints["guard"], engine, BuildOptions(max_context=64))
    assert "up to date" in again()
    assert "taken over" in again(kv_layout="concat")
    assert verify_files(engine).files["vision.onnx"] == first.files["vision.onnx"]
    again(vision="none")
    assert not list(engine.glob("vision*"))
    again()
    assert verify_files(engine).files == first.files


def test_a_tower_that_cannot_be_built_is_named(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    raw = json.loads((checkpoints["guard"] / "config.json").read_text())
    path = tmp_path / "c"
    write_sample(path, "guard", "tiny", seed=3, vision=True)
    raw["vision_config"]["num_hidden_layers"] = 1
    (path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"layers\.1\..* is no part of the vision tower .* --vision none builds"):
        build(path, tmp_path / "e")
    raw["vision_config"]["num_attention_heads"] = 3
    (path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"num_attention_heads is 3; .*--vision none builds without the tower"):
        build(path, tmp_path / "e")
    build(path, tmp_path / "e", BuildOptions(vision="none"))
    with pytest.raises(InputError, match=r"--vision-dtype: nothing is built for --vision none; leave it out"):
        build(path, tmp_path / "f", BuildOptions(vision="none", vision_dtype="fp16"))
    with pytest.raises(InputError, match=r"--vision-dtype bf16: --target ort-cpu .* use fp32 or fp16"):
        build(path, tmp_path / "f", BuildOptions(vision_dtype="bf16"))
    write_sample(tmp_path / "text", "guard", "tiny", seed=3)
    with pytest.raises(InputError, match=r"--vision-dtype: .* has no vision tower; leave it out"):
        build(tmp_path / "text", tmp_path / "f", BuildOptions(vision_dtype="fp16"))
