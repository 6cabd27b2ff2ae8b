"""A slice of the layers: its config, its reference, and the engine built of it, at parity with each other."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from l4export.checkpoint import open_checkpoint
from l4export.checkpoint.hf_config import config_from_hf
from l4export.checkpoint.sample import hf_config
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.manifest import load_manifest
from l4export.errors import InputError
from l4export.model.config import ModelConfig
from l4export.parity.whole_model import check_parity
from l4export.reference.transformers_model import HFReference
from workshop import Workshop, assert_close, copy_checkpoint, random_ids

# `--layers` of the build: skipped as long as only the reference can be sliced.
SLICES = [(variant, layers) for variant in ("scout", "maverick") for layers in ((1, 3), (2, 4))]


def config(variant: str) -> ModelConfig:
    return config_from_hf(hf_config(variant, "tiny"), variant)


def test_the_config_of_a_slice_is_numbered_from_zero() -> None:
    slice_ = config("maverick").slice_layers(1, 4)  # MoE 1 and 3; layer 3 has neither RoPE nor chunks
    assert slice_.num_hidden_layers == 3 and slice_.moe_layers == (0, 2)
    assert slice_.rope_layers == slice_.chunked_layers == (True, True, False)
    assert config("maverick").slice_layers(2, 3).moe_layers == ()
    assert config("scout").slice_layers(0, 4) == config("scout")
    assert ModelConfig.from_dict(slice_.to_dict(), "slice") == slice_


@pytest.mark.parametrize(
    ("start", "stop", "why"),
    [
        (3, 9, "layers 0 to 3"),
        (4, 5, "layers 0 to 3"),
        (-1, 2, "layers 0 to 3"),
        (2, 2, "no layer"),
        (3, 1, "no layer"),
    ],
)
def test_bad_slices_are_refused(workshop: Workshop, start: int, stop: int, why: str) -> None:
    with pytest.raises(InputError, match=f"--layers {start}:{stop}: .*{why}"):
        config("scout").slice_layers(start, stop)
    with pytest.raises(InputError, match=f"--layers {start}:{stop}: "):
        HFReference(workshop.checkpoint("scout"), (start, stop))


@pytest.mark.parametrize("variant", ["scout", "maverick", "guard", "mobile"])
def test_the_whole_as_a_slice_is_the_reference(workshop: Workshop, variant: str) -> None:
    ids = random_ids((1, 40))
    whole = HFReference(workshop.checkpoint(variant), (0, 4)).logits(ids)
    np.testing.assert_array_equal(whole, workshop.reference(variant).logits(ids))


@pytest.mark.parametrize(("variant", "layers"), SLICES)
def test_a_slice_holds_the_weights_of_its_layers(workshop: Workshop, variant: str, layers: tuple[int, int]) -> None:
    """Said again by hand: transformers' own layers A .. B - 1 of the whole model, run one after the other."""
    import torch

    ids = random_ids((1, 40))
    reference = HFReference(workshop.checkpoint(variant), layers)
    model = HFReference(workshop.checkpoint(variant)).model
    model.model.layers = model.model.layers[slice(*layers)]
    model.model.config.num_hidden_layers = layers[1] - layers[0]
    model.model.config.layer_types = model.model.config.layer_types[slice(*layers)]
    with torch.inference_mode():
        expected = model(input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()
    assert_close(reference.logits(ids), expected, 1e-6)


def test_a_prefixed_checkpoint_in_shards_can_be_sliced(workshop: Workshop, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    source = workshop.checkpoint("maverick")
    path = copy_checkpoint(source, tmp_path / "sharded")
    tensors = {f"language_model.{name}": value for name, value in load_file(path / "model.safetensors").items()}
    tensors["vision_model.class_embedding"] = np.zeros(4, np.float32)
    (path / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {name: f"model-{i % 2 + 1:05d}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    ids = random_ids((1, 40))
    expected = HFReference(source, (1, 4)).logits(ids)
    np.testing.assert_array_equal(HFReference(path, (1, 4)).logits(ids), expected)


def test_a_missing_weight_is_named(workshop: Workshop, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "lacking")
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.2.self_attn.q_proj.weight"]
    save_file(tensors, path / "model.safetensors")
    for layers in (None, (1, 3)):
        with pytest.raises(InputError, match=r"self_attn\.q_proj\.weight' is missing"):
            HFReference(path, layers)
    HFReference(path, (0, 2))


def test_layers_of_a_manifest_are_checked(workshop: Workshop, tmp_path: Path) -> None:
    engine = copy_checkpoint(workshop.engine_path("scout", "static"), tmp_path / "engine")
    manifest = load_manifest(engine)
    bad = dataclasses.replace(manifest, options={**manifest.options, "weights": {"layers": [1, "x"]}})
    (engine / "manifest.json").write_text(bad.to_json())
    with pytest.raises(InputError, match="'layers'"):
        check_parity(engine, workshop.checkpoint("scout"), 4, 2)


@pytest.mark.parametrize("layout", ["static", "concat"])
@pytest.mark.parametrize(("variant", "layers"), SLICES)
def test_an_engine_of_a_slice_is_at_parity(
    workshop: Workshop, tmp_path: Path, variant: str, layers: tuple[int, int], layout: str
) -> None:
    checkpoint = workshop.checkpoint(variant)
    manifest = build(checkpoint, tmp_path / "engine", BuildOptions(kv_layout=layout, max_context=256, layers=layers))
    assert manifest.options["weights"]["layers"] == list(layers)
    assert manifest.model == open_checkpoint(checkpoint).config.slice_layers(*layers)
    report = check_parity(tmp_path / "engine", checkpoint, prefill=40, decode=20)
    assert report.passed, report.failures
    assert report.chunk_boundaries == 3


def test_an_engine_of_another_slice_is_not_at_parity(workshop: Workshop, tmp_path: Path) -> None:
    checkpoint = workshop.checkpoint("scout")
    manifest = build(checkpoint, tmp_path / "engine", BuildOptions(max_context=256, layers=(1, 3)))
    lie = dataclasses.replace(manifest, options={**manifest.options, "weights": {"layers": [0, 2]}})
    (tmp_path / "engine" / "manifest.json").write_text(lie.to_json())
    assert not check_parity(tmp_path / "engine", checkpoint, prefill=20, decode=2).passed


def test_bad_slices_are_refused_by_the_build(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--layers 3:9: the model has layers 0 to 3"):
        build(workshop.checkpoint("scout"), tmp_path / "engine", BuildOptions(layers=(3, 9)))
    assert list(tmp_path.iterdir()) == []
