"""Folders of Meta's own layout give the weights, the config and the engine of the checkpoint that they were made of."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from image_client import ImageClient, transformers_logits
from meta_folders import write_meta_folder
from safetensors.numpy import load_file, save_file
from tiny_vision import pixels

from l4export import runtimes
from l4export.checkpoint import Checkpoint, open_checkpoint, read_config, read_vision_config, write_tokenizer_json
from l4export.checkpoint.sample import write_sample
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.errors import InputError
from l4export.inspection.dequantized_weights import dequantized_weights
from l4export.inspection.facts import CheckpointFacts, inspect
from l4export.model.tensors import tensors, vision_tensors
from l4export.parity.whole_model import check_parity
from l4export.reference.vision_tower import HFVisionTower
from l4export.runtimes.session import Session
from l4export.runtimes.text.codec import TextCodec
from workshop import Workshop, assert_close, edit_config, random_ids

IMAGE_TOKEN = 256 + 92


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Scout that sees, with a vocabulary that has Meta's 2048 special tokens behind 256 others."""
    path = tmp_path_factory.mktemp("seeing") / "c"
    write_sample(path, "scout", "tiny", seed=3, vision=True)
    weights, rng = load_file(path / "model.safetensors"), np.random.default_rng(0)
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        more = rng.standard_normal((2048, weights[name].shape[1])).astype(np.float32)
        weights[name] = np.concatenate([weights[name], more * weights[name].std()])
    save_file(weights, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["vocab_size"] = 256 + 2048
    config["image_token_index"] = IMAGE_TOKEN
    (path / "config.json").write_text(json.dumps(config))
    return path


def weights_of(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Every weight of the inventory."""
    found = {name: checkpoint.tensor(name, shape).read() for name, shape in tensors(checkpoint.config).items()}
    if checkpoint.has_vision():
        inventory = vision_tensors(checkpoint.vision_config(), checkpoint.config.hidden_size)
        found |= {name: checkpoint.vision_tensor(name, shape).read() for name, shape in inventory.items()}
    return found


def edit_state(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    with torch.serialization.safe_globals([io.BytesIO]):  # the extra states
        state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)


@pytest.mark.parametrize("plain_names", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("variant", ["scout", "maverick", "guard"])
def test_every_weight(workshop: Workshop, tmp_path: Path, variant: str, ranks: int, plain_names: bool) -> None:
    source = workshop.checkpoint(variant)
    folder = write_meta_folder(source, tmp_path / "m", ranks, plain_names)
    expected, found = weights_of(open_checkpoint(source)), weights_of(open_checkpoint(folder))
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_weight_of_a_tower(seeing: Path, tmp_path: Path, ranks: int) -> None:
    checkpoint = open_checkpoint(write_meta_folder(seeing, tmp_path / "m", ranks))
    expected = weights_of(open_checkpoint(seeing))
    assert checkpoint.has_vision() and not checkpoint.is_vision_plain()
    for name, values in weights_of(checkpoint).items():
        np.testing.assert_array_equal(values, expected.pop(name), err_msg=name)
    assert not expected


@pytest.mark.parametrize("variant", ["scout", "maverick", "guard"])
def test_the_same_config(workshop: Workshop, tmp_path: Path, variant: str) -> None:
    """But for the special tokens, which a vocabulary of 256 has not, and what params.json does not say."""
    folder = write_meta_folder(workshop.checkpoint(variant), tmp_path / "m", 1)
    expected, found = (read_config(path).to_dict() for path in (workshop.checkpoint(variant), folder))
    unsaid = {"bos_token_id", "eos_token_ids", "pad_token_id", "max_position_embeddings"}
    unsaid |= {"intermediate_size", "num_experts_per_tok", "num_local_experts"} if variant == "guard" else set()
    assert {name for name in expected if expected[name] != found[name]} <= unsaid
    assert found["max_position_embeddings"] == (8192 if variant == "guard" else 1048576)


@pytest.mark.parametrize("variant", ["scout", "maverick"])
def test_an_engine_against_transformers(workshop: Workshop, tmp_path: Path, variant: str) -> None:
    """transformers runs the checkpoint that the folder was made of; prompt and tokens go past the ends of chunks."""
    folder = write_meta_folder(workshop.checkpoint(variant), tmp_path / "m", 2)
    build(folder, tmp_path / "e", BuildOptions(kv_layout="chunked", max_context=64))
    data = "decoder-00001-of-00001.data"
    assert (tmp_path / "e" / data).read_bytes() == (workshop.engine_path(variant, "chunked", 64) / data).read_bytes()
    ids = random_ids(40, seed=5)
    expected = workshop.reference(variant).logits(ids[None])[0]
    opened = runtimes.load(tmp_path / "e", threads=1)
    session = Session(opened.new_cache, opened.manifest, 1)
    for start, stop in ((0, 16), (16, 23), *((at, at + 1) for at in range(23, 40))):
        logits = session.append(ids[start:stop])[0]
        assert_close(logits, expected[start:stop][-len(logits) :], 1e-5)  # float32 in another order of summation
    assert check_parity(tmp_path / "e", folder, 20, 4).passed


def test_an_engine_that_sees(seeing: Path, tmp_path: Path) -> None:
    folder = write_meta_folder(seeing, tmp_path / "m", 4)
    (folder / "tokenizer.model").write_text(
        "".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    )
    write_tokenizer_json(folder)
    build(folder, tmp_path / "e", BuildOptions(max_context=64))
    assert (codec := TextCodec.open(tmp_path / "e"))
    assert codec.encode("é<|patch|>") == [256, *"é".encode(), IMAGE_TOKEN]
    ids, tiles = random_ids(42, 230), pixels(3, 16)
    ids[12:20] = ids[30:34] = IMAGE_TOKEN
    expected = transformers_logits(seeing, ids[None], tiles, tmp_path / "scratch")[0]
    features = ImageClient(tmp_path / "e").features(tiles)
    for cuts in ([5, 13, 16, 18, 31, 32, 33], list(range(1, 42))):
        assert_close(ImageClient(tmp_path / "e").feed(ids, features, cuts), expected, 1e-5)
    assert_close(HFVisionTower(open_checkpoint(folder)).features(tiles), features, 1e-5)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Scout whose experts have groups of 128 weights in both directions, on two ranks."""
    path = tmp_path_factory.mktemp("wide") / "c"
    write_sample(path, "scout", "tiny", seed=3)
    edit_config(path, hidden_size=128, intermediate_size=256, head_dim=32, intermediate_size_mlp=176)
    rng = np.random.default_rng(1)
    inventory = tensors(read_config(path))
    save_file(
        {name: rng.standard_normal(shape).astype(np.float32) / 8 for name, shape in inventory.items()},
        path / "model.safetensors",
    )
    return path


def as_int4(weight: np.ndarray) -> np.ndarray:
    """[..., K] rounded to 16 steps of an eighth of the largest of every 128."""
    groups = weight.reshape(-1, 128)
    scale = (np.abs(groups).max(1, keepdims=True) / np.float32(8)).astype(np.float32)
    return (np.clip(np.round(groups / scale), -8, 7) * scale).reshape(weight.shape)


def as_fp8(weight: np.ndarray) -> np.ndarray:
    """[..., K] rounded to FP8 with a scale for every row."""
    scale = (np.abs(weight).max(-1, keepdims=True) / np.float32(448)).astype(np.float32)
    return (weight / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale


@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_scales_beside_the_shards(wide: Path, tmp_path: Path, kind: str) -> None:
    """Every shard has scales of its own along what it shares with others."""
    folder = write_meta_folder(wide, tmp_path / "m", 2, scales=kind)
    checkpoint, original = open_checkpoint(folder), open_checkpoint(wide)
    rounded = as_fp8 if kind == "fp8" else as_int4
    for name, shape in tensors(original.config).items():
        expected = original.tensor(name, shape).read()
        quantised = ".experts." in name and not (kind == "fp8" and name.split(".")[2] in "03")
        if quantised:  # [E, K, N]; each of two ranks has half of the experts' inner width
            turned = expected.transpose(0, 2, 1)
            halves = np.split(turned, 2, axis=2) if "down_proj" in name else [turned]
            expected = np.concatenate([rounded(half) for half in halves], axis=2).transpose(0, 2, 1)
        elif kind == "int4" and ".shared_expert." in name:
            halves = np.split(expected, 2, axis=1) if "down_proj" in name else [expected]
            expected = np.concatenate([as_int4(half) for half in halves], axis=1)
        weight = checkpoint.tensor(name, shape)
        np.testing.assert_array_equal(weight.read(), expected, err_msg=name)
        if quantised:
            assert [part.file_name for part in weight.parts][:2] == ["consolidated.00.pth", f"{kind}_scales_0.pt"]
            for region in ((1, slice(5, 130), slice(3, 200)), (slice(1, 3), slice(129, 131)), (2, 77)):
                small = tuple(
                    cut if isinstance(cut, int) else slice(min(cut.start, size - 1), min(cut.stop, size))
                    for cut, size in zip(region, shape, strict=False)
                )
                np.testing.assert_array_equal(weight.read(small), expected[small], err_msg=f"{name} {small}")
    assert any(f"weights have {kind}_scales" in note for note in checkpoint.notes())


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", ["fp8", "int4"])
@pytest.mark.parametrize("target", ["ort-cpu", "onnx"])
def test_codes_beside_scales_are_kept(wide: Path, tmp_path: Path, kind: str, ranks: int, target: str) -> None:
    """An engine's weights are the folder's to the bit, also where scales change from rank to rank along K."""
    folder = write_meta_folder(wide, tmp_path / "m", ranks, scales=kind)
    planned = plan_build(folder, options := BuildOptions(max_context=64, target=target))
    assert [codes.outcome for codes in planned.stored_codes] == ["kept"]
    build(folder, tmp_path / "e", options)
    checkpoint, found = open_checkpoint(folder), dict(dequantized_weights(tmp_path / "e"))
    assert len(found) == planned.stored_codes[0].count == {"fp8": 2 * 2, "int4": 4 * 5}[kind]
    inventory = tensors(checkpoint.config)
    for name, values in found.items():
        np.testing.assert_array_equal(values, checkpoint.tensor(name, inventory[name]).read(), err_msg=name)
    report = check_parity(tmp_path / "e", folder, 20, 20)
    assert report.passed and report.chunk_boundaries > 0


def test_what_inspect_says_of_scales(wide: Path, tmp_path: Path) -> None:
    facts = inspect(write_meta_folder(wide, tmp_path / "m", 2, scales="int4"))
    assert isinstance(facts, CheckpointFacts)
    assert facts.stored_as["experts down"] == ("INT4, groups of 128",)
    assert facts.kept_codes["ort-cpu"] == ("experts gate_up", "experts down", "shared expert")


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(InputError) as error:
        plan_build(folder, BuildOptions(max_context=64))
    message = str(error.value)
    assert "\n" not in message and len(message) < 500 and all(word in message for word in words), message


def test_shards_that_do_not_fit(workshop: Workshop, tmp_path: Path) -> None:
    folder = write_meta_folder(workshop.checkpoint("scout"), tmp_path / "m", 4)
    first, second, last = (folder / f"consolidated.{rank:02d}.pth" for rank in (0, 1, 3))
    second.rename(kept := folder / "kept")
    refused(folder, "missing shard 'consolidated.01.pth'")
    kept.rename(second)
    last.rename(kept)
    refused(folder, "of 3 shards has shape", "shards are missing")
    kept.rename(last)
    copy = folder / "consolidated.pth"
    copy.write_bytes(first.read_bytes())
    refused(folder, "consolidated.pth and consolidated.00.pth")
    copy.unlink()
    edit_state(second, lambda state: state.pop("layers.1.attention.wo.weight"))
    refused(folder, "consolidated.01.pth: tensor 'layers.1.attention.wo.weight' is missing, which other shards have")
    edit_state(second, lambda state: state.update({"layers.1.attention.wo.weight": torch.zeros(60, 16)}))
    refused(folder, "consolidated.01.pth: tensor 'layers.1.attention.wo.weight' has shape [60, 16]")
    edit_state(second, lambda state: state.update({"layers.1.attention.wo.weight": torch.zeros(64, 16).long()}))
    refused(folder, "dtype I64")
    edit_state(second, lambda state: state.update({"layers.1.attention.wo.weight": torch.zeros(64, 16), "more": None}))
    plan_build(folder, BuildOptions(max_context=64))
    edit_state(second, lambda state: state.update(more=torch.zeros(3)))
    refused(folder, "'more' is no part of the model that params.json describes")
    (folder / "params.json").rename(kept)
    refused(folder, "params.json is missing")


def test_scales_that_do_not_fit(wide: Path, tmp_path: Path) -> None:
    folder = write_meta_folder(wide, tmp_path / "m", 2, scales="fp8")
    first, second = (folder / f"fp8_scales_{rank}.pt" for rank in (0, 1))
    name = "layers.1.feed_forward.experts.w2"
    edit_state(first, lambda state: state.update({name: state[name][:, :5]}))
    refused(folder, "fp8_scales_0.pt: scales", name, "[4, 5], expected floats [4, 128]")
    edit_state(first, lambda state: state.pop(name))
    refused(folder, "fp8_scales_0.pt has no scales for 'layers.1.feed_forward.experts.moe_w_out_eF_D'")
    second.rename(folder / "int4_scales_1.pt")
    refused(folder, "fp8_scales and int4_scales")
    (folder / "int4_scales_1.pt").unlink()
    refused(folder, "2 shards, and not as many scales: see fp8_scales_1.pt")
    first.unlink()
    refused(folder, "has codes of FP8 or INT4, and fp8_scales_0.pt or int4_scales_0.pt is missing")


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("fp8", float("nan"), "has a scale of nan"),
        ("int4", -0.5, "has a scale of -0.5"),
        ("int4", float("inf"), "has a scale of inf"),
        ("fp8", 0.0, "has a scale of 0 for codes that are not 0"),
        ("int4", 0.0, "has a scale of 0 for codes that are not 0"),
    ],
)
def test_scales_that_no_rounding_has_made(wide: Path, tmp_path: Path, kind: str, value: float, words: str) -> None:
    """Found when the weight is read, by the names of file and tensor."""
    folder = write_meta_folder(wide, tmp_path / "m", 2, scales=kind)
    name = "layers.1.feed_forward.experts." + ("w2" if kind == "fp8" else "moe_w_out_eF_D")
    edit_state(folder / f"{kind}_scales_1.pt", lambda state: state[name].view(-1)[:300].fill_(value))
    weight = open_checkpoint(folder).tensor("model.layers.1.feed_forward.experts.down_proj", (4, 256, 128))
    with pytest.raises(InputError, match=rf"{kind}_scales_1\.pt: tensor '{name}' {words}"):
        weight.read()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dim": None}, "dim is missing"),
        ({"dim": 63}, "n_heads is 4"),
        ({"n_layers": "4"}, "n_layers is '4'; expected an integer"),
        ({"n_layers": 5}, "nothing is stored for weight 'model.layers.4."),
        ({"n_layers": 3}, "'layers.3.attention.wo.weight' is no part of the model"),
        ({"ffn_exp": None}, "ffn_exp is missing"),
        ({"multiple_of": 1024}, "expected [4, 64, 2048]"),
        ({"moe_args": []}, "moe_args: expected a JSON object"),
        ({"vision_args": {"dim": 32}}, "output_dim is missing"),
        ({"lora_args": {"rank": 16}}, "lora_args is set"),
        ({"quantization_args": {"spinquant": True}}, "quantization_args names a scheme"),
        ({"rope_high_freq_factor": "low"}, "rope_high_freq_factor is 'low'"),
        ({"vocab_size": -1}, "expected [202048, 64]"),
        ({"head_dim": 8}, "n_heads is 4"),
    ],
)
def test_params_that_do_not_fit(workshop: Workshop, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    folder = write_meta_folder(workshop.checkpoint("scout"), tmp_path / "m", 1)
    path = folder / "params.json"
    path.write_text(json.dumps({"model": {**json.loads(path.read_text()), **changes}}))
    refused(folder, words)


def test_a_tower_that_params_do_not_describe(seeing: Path, tmp_path: Path) -> None:
    folder = write_meta_folder(seeing, tmp_path / "m", 1)
    params = json.loads((folder / "params.json").read_text())
    assert read_vision_config(folder) == open_checkpoint(seeing).vision_config()
    vision = params.pop("vision_args")
    (folder / "params.json").write_text(json.dumps(params))
    assert read_vision_config(folder) is None
    refused(folder, "vision_args is missing", "--vision none builds without the tower")
    vision["patch_size"]["width"] = 5
    (folder / "params.json").write_text(json.dumps(params | {"vision_args": vision}))
    refused(folder, "patch_size is 5 wide and 4 high")


def test_scout_as_released(tmp_path: Path) -> None:
    """The widths, the context and the tokens of the released model, which its config.json has as numbers."""
    params = {"dim": 5120, "n_layers": 48, "n_heads": 40, "n_kv_heads": 8, "vocab_size": 202048, "multiple_of": 2048}
    params |= {"ffn_dim_multiplier": 1.2, "ffn_exp": 4.0, "norm_eps": 1e-5, "rope_theta": 500000.0}
    params |= {"attention_chunk_size": 8192, "use_scaled_rope": True, "nope_layer_interval": 4, "use_qk_norm": True}
    params |= {"attn_temperature_tuning": True, "moe_args": {"num_experts": 16, "capacity_factor": 1.0}}
    square = {name: {"height": size, "width": size} for name, size in (("image_size", 336), ("patch_size", 14))}
    vision = {**square, "dim": 1408, "n_layers": 34, "n_heads": 16, "mlp_ratio": 4.0, "output_dim": 4096}
    params["vision_args"] = {**vision, "pixel_shuffle_ratio": 0.5}
    (tmp_path / "params.json").write_text(json.dumps(params))
    write_sample(released := tmp_path / "released", "scout", "full", seed=0, vision=True)
    assert read_config(tmp_path) == read_config(released)
    assert read_vision_config(tmp_path) == read_vision_config(released)
    params |= {"moe_args": {"num_experts": 128, "interleave_moe_layer_step": 2}, "attn_temperature_tuning": False}
    (tmp_path / "params.json").write_text(json.dumps(params))
    maverick = read_config(tmp_path)
    assert maverick.moe_layers == tuple(range(1, 48, 2)) and maverick.max_position_embeddings == 1048576
    assert (maverick.intermediate_size, maverick.intermediate_size_mlp) == (8192, 16384)


def test_both_layouts_in_one_folder(workshop: Workshop, tmp_path: Path) -> None:
    """Hugging Face's is read, and a note says so."""
    folder = write_meta_folder(workshop.checkpoint("scout"), tmp_path / "m", 1)
    facts = inspect(folder)
    size = (folder / "consolidated.00.pth").stat().st_size
    assert facts.files == {"consolidated.00.pth": size} and size * 0.8 < facts.bytes < size
    assert facts.model.parameters == inspect(workshop.checkpoint("scout")).model.parameters
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((workshop.checkpoint("scout") / name).read_bytes())
    both = open_checkpoint(folder)
    assert both.is_plain() and any("'consolidated.00.pth' is not read" in note for note in both.notes())
    (folder / "model.safetensors").unlink()
    assert not open_checkpoint(folder).is_plain()


def test_notes_and_stop_tokens(workshop: Workshop, tmp_path: Path) -> None:
    folder = write_meta_folder(workshop.checkpoint("scout"), tmp_path / "m", 1)
    (note,) = open_checkpoint(folder).notes()
    assert "params.json: does not say the longest context; 1048576 tokens are taken" in note
    params = json.loads((folder / "params.json").read_text())
    del params["attn_temperature_tuning"]
    (folder / "params.json").write_text(json.dumps(params))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.eos_token_ids == (7, 9)
    assert [note for note in checkpoint.notes() if "attn_temperature_tuning is not on" in note and "8 tokens" in note]
