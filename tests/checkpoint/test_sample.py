from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4export.checkpoint import open_checkpoint, sample, sample_files, sample_weights
from l4export.checkpoint.hf_config import config_from_hf
from l4export.checkpoint.sample import VARIANTS, hf_config, write_sample
from l4export.checkpoint.sample_vision import VISION_VARIANTS
from l4export.engine.companions import SETTINGS_FILES
from l4export.errors import InputError, StorageError
from l4export.model.tensors import parameter_count, vision_tensors


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("samples")
    for variant in VARIANTS:
        write_sample(root / variant, variant, "tiny", seed=0)
    return {variant: root / variant for variant in VARIANTS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_runs_it(variant: str, samples: dict[str, Path]) -> None:
    import torch
    from transformers import Llama4ForCausalLM

    # transformers cannot run a chunk size of null; one longer than the prompt means the same
    options: dict[str, Any] = {"attention_chunk_size": 4096} if variant == "guard" else {}
    model, report = Llama4ForCausalLM.from_pretrained(samples[variant], output_loading_info=True, **options)
    assert not any(report.values()), report
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    routed: list[torch.Tensor] = []
    for name, module in model.named_modules():
        if name.endswith("router"):
            module.register_forward_hook(lambda _module, _inputs, output: routed.append(output[1]))
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 300)))
    with torch.no_grad():
        logits = model.eval()(ids).logits
    assert torch.isfinite(logits).all() and 1.5 < logits.std() < 4
    assert len(routed) == {"scout": 4, "maverick": 2}.get(variant, 0)
    for router_logits in routed:
        counts = torch.bincount(router_logits.argmax(-1).flatten(), minlength=4)
        assert router_logits.std() > 1.5 and counts.min() > 10, counts


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_opens_as_a_checkpoint(variant: str, samples: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(samples[variant])
    total = sum(int(np.prod(tensor.shape)) for tensor in checkpoint.tensors.values())
    assert total == parameter_count(checkpoint.config).total
    assert ("lm_head.weight" in checkpoint.tensors) == (variant != "mobile")
    norm = checkpoint.tensor("model.norm.weight", (64,)).read()
    assert 0.5 <= norm.min() < 0.7 and 1.3 < norm.max() < 1.5


def test_every_feature_is_somewhere() -> None:
    scout, maverick, guard, mobile = (config_from_hf(hf_config(v, "tiny"), v) for v in VARIANTS)
    assert scout.moe_layers == (0, 1, 2, 3) and scout.use_qk_norm and scout.rope_scaling is not None
    assert maverick.moe_layers == (1, 3) and not maverick.use_qk_norm and maverick.rope_scaling is None
    assert scout.rope_layers == maverick.rope_layers == scout.chunked_layers == (True, True, True, False)
    assert guard.moe_layers == () and guard.attention_chunk_size is None and all(guard.rope_layers)
    assert mobile.tie_word_embeddings and mobile.use_qk_norm and not mobile.attn_temperature_tuning
    assert all(mobile.rope_layers) and all(mobile.chunked_layers) and mobile.attention_chunk_size == 16


def test_bench_sizes() -> None:
    scout = config_from_hf(hf_config("scout", "bench"), "c")
    assert parameter_count(scout).total == 1_884_440_576
    for variant in VARIANTS:
        config_from_hf(hf_config(variant, "bench"), variant)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_seed_decides_every_byte(samples: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sample(tmp_path / "again", "scout", "tiny", seed=0)
    assert contents(tmp_path / "again") == contents(samples["scout"])
    write_sample(tmp_path / "other", "scout", "tiny", seed=1)
    ours, other = open_checkpoint(samples["scout"]), open_checkpoint(tmp_path / "other")
    assert all((ours.tensors[name].read() != tensor.read()).any() for name, tensor in other.tensors.items())
    # neither shards nor blocks change a weight
    monkeypatch.setattr(sample, "_SHARD_BYTES", 100_000)
    monkeypatch.setattr(sample_weights, "_BLOCK", 1000)
    write_sample(tmp_path / "shards", "scout", "tiny", seed=0)
    shards = open_checkpoint(tmp_path / "shards")
    assert len(shards.files) > 5 and (tmp_path / "shards" / "model.safetensors.index.json").exists()
    assert all(file.size < 110_000 for file in shards.files)
    for name, tensor in ours.tensors.items():
        np.testing.assert_array_equal(tensor.read(), shards.tensors[name].read())


def test_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**hf_config("maverick", "tiny"), "dtype": "bfloat16"}
    monkeypatch.setattr(sample, "hf_config", lambda *_: small)
    write_sample(tmp_path / "out", "maverick", "bench", seed=0)
    assert {str(t.dtype) for t in open_checkpoint(tmp_path / "out").tensors.values()} == {"bfloat16"}


def test_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_sample(tmp_path / "out", "mobile", "tiny", 0, lambda done, total: seen.append((done, total)))
    total = 4 * parameter_count(open_checkpoint(tmp_path / "out").config).total
    assert seen == sorted(seen) and seen[-1] == (total, total)


def test_refusals(tmp_path: Path) -> None:
    for variant, size in (("behemoth\n", "tiny"), ("scout", "huge")):
        with pytest.raises(InputError, match="unknown; choose") as error:
            write_sample(tmp_path / "out", variant, size, 0)
        assert "\n" not in str(error.value)
    (tmp_path / "link").symlink_to("nowhere")
    for path in (tmp_path, tmp_path / "link"):
        with pytest.raises(InputError, match="exists"):
            write_sample(path, "scout", "tiny", 0)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        write_sample(tmp_path / "file" / "out", "scout", "tiny", 0)


def test_an_interrupted_sample_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path / "out", "scout", "tiny", 0, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_config_is_what_transformers_would_write(samples: dict[str, Path]) -> None:
    raw = json.loads((samples["scout"] / "config.json").read_text())
    assert raw["model_type"] == "llama4_text" and raw["rope_parameters"]["rope_type"] == "llama3"
    assert json.loads((samples["guard"] / "config.json").read_text())["attention_chunk_size"] is None


@pytest.mark.parametrize(
    ("variant", "parameters", "tensors"), [("scout", 107_769_861_120, 579), ("maverick", 400_711_848_960, 507)]
)
def test_full_size_has_the_released_shapes_and_no_weights(
    tmp_path: Path, variant: str, parameters: int, tensors: int
) -> None:
    write_sample(tmp_path / "out", variant, "full", seed=0)
    checkpoint = open_checkpoint(tmp_path / "out")
    config = checkpoint.config
    assert parameter_count(config).total == parameters
    assert sum(int(np.prod(tensor.shape)) for tensor in checkpoint.tensors.values()) == parameters
    assert len(checkpoint.tensors) == tensors and config.num_hidden_layers == 48
    assert sum(config.rope_layers) == 36 and config.rope_layers[:4] == (True, True, True, False)
    experts = {"scout": 16, "maverick": 128}[variant]
    shape = (experts, 5120, 16384)
    last = checkpoint.tensor("model.layers.47.feed_forward.experts.gate_up_proj", shape)
    assert not last.read((experts - 1, slice(5000, None), slice(100))).any()
    assert sum(file.size for file in checkpoint.files) > 2 * parameters
    alone = {tensor.file_name for tensor in checkpoint.tensors.values() if tensor.nbytes > 5 * 10**9}
    assert all(file.size < 5.001e9 or file.path.name in alone for file in checkpoint.files)
    files = list((tmp_path / "out").iterdir())
    assert sum(file.stat().st_blocks * 512 for file in files) < 2_000_000
    assert sum(file.suffix == ".safetensors" for file in files) == len(checkpoint.files) > 40


def test_a_full_size_file_is_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    from safetensors import safe_open

    write_sample(tmp_path / "out", "scout", "full", seed=0)
    with safe_open(min((tmp_path / "out").glob("*.safetensors")), "np") as file:
        rows = file.get_slice("model.embed_tokens.weight")
        assert rows.get_shape() == [202048, 5120] and rows.get_dtype() == "BF16"


def test_full_size_is_refused_where_it_would_be_a_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variant in ("guard", "mobile"):
        with pytest.raises(InputError, match=f"'{variant}' has no size 'full'; choose scout or maverick"):
            write_sample(tmp_path / "out", variant, "full", 0)
    monkeypatch.setattr(sample_files, "_taken_bytes", lambda descriptor: os.fstat(descriptor).st_size)
    with pytest.raises(StorageError, match="does not keep sparse files"):
        write_sample(tmp_path / "out", "scout", "full", 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variant", VISION_VARIANTS)
def test_one_with_a_tower_is_what_transformers_loads_whole(variant: str, tmp_path: Path) -> None:
    import torch
    from transformers import Llama4ForConditionalGeneration

    write_sample(tmp_path / "out", variant, "tiny", seed=0, vision=True)
    if variant == "guard":  # transformers cannot run a chunk size of null
        raw = json.loads((tmp_path / "out" / "config.json").read_text())
        raw["text_config"]["attention_chunk_size"] = 4096
        (tmp_path / "out" / "config.json").write_text(json.dumps(raw))
    model, report = Llama4ForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    pixels = torch.from_numpy(np.random.default_rng(1).uniform(-1, 1, (3, 3, 16, 16)).astype(np.float32))
    with torch.no_grad():
        features = model.multi_modal_projector(model.eval().vision_model(pixels).last_hidden_state)
    assert features.shape == (3, 4, 64) and 0.5 < features.std() < 2  # as the embeddings, which are of order one
    assert (features[0] - features[1]).abs().max() > 0.1


def test_a_tower_leaves_the_text_model_as_it_is(samples: dict[str, Path], tmp_path: Path) -> None:
    write_sample(tmp_path / "out", "scout", "tiny", seed=0, vision=True)
    text, whole = open_checkpoint(samples["scout"]), open_checkpoint(tmp_path / "out")
    assert whole.config == text.config and whole.has_vision() and not text.has_vision()
    for name, tensor in text.tensors.items():
        np.testing.assert_array_equal(tensor.read(), whole.tensors[f"language_model.{name}"].read())
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["size"]["height"] == 16


def test_full_size_has_the_released_tower(tmp_path: Path) -> None:
    write_sample(tmp_path / "out", "maverick", "full", seed=0, vision=True)
    checkpoint = open_checkpoint(tmp_path / "out")
    shapes = vision_tensors(checkpoint.vision_config(), 5120)
    assert sum(map(math.prod, shapes.values())) == 871_932_416
    for name, shape in shapes.items():
        checkpoint.vision_tensor(name, shape)
    assert {*SETTINGS_FILES} & {path.name for path in (tmp_path / "out").iterdir()} == {
        "chat_template.jinja",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_mobile_sees_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'mobile' has no vision tower; choose scout, maverick, guard"):
        write_sample(tmp_path / "out", "mobile", "tiny", 0, vision=True)
