"""Checkpoints as people report them to other projects: each is built as the model that transformers computes.

The numbers of the reports stand with the cases. What is refused by name is in `tests/checkpoint/test_unreadable.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from l4export import runtimes
from l4export.checkpoint import open_checkpoint
from l4export.cli import main
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.parity.whole_model import check_parity
from l4export.quantization.policy import Policy, Rule
from l4export.reference.transformers_model import HFReference
from workshop import LAYOUTS, Workshop, assert_close, copy_checkpoint, edit_config, random_ids

Weights = dict[str, np.ndarray]
INDEX = "model.safetensors.index.json"
STOPS = [200001, 200007, 200008]


def rewrite(checkpoint: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def shard(checkpoint: Path, extra: dict[str, str], unlisted: str | None = None) -> None:
    """Cut the weights into two shards with an index; `extra` goes into the index, and `unlisted` does not."""
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    names, listed = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, checkpoint / file)
        listed |= dict.fromkeys(part, file)
    listed.pop(unlisted or "", None)
    (checkpoint / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": listed | extra}))


def cut_lists(checkpoint: Path) -> None:
    """vllm test_maverick.py: `num_hidden_layers` cut, two of the lists by layer as long as they were."""
    rewrite(checkpoint, lambda raw: raw | {"no_rope_layers": [1, 1, 1, 0] * 2, "moe_layers": list(range(8))})


def first_release(checkpoint: Path) -> None:
    """transformers#37479, #37359, #44882: numbers of other kinds, keys of the first release."""

    def change(raw: dict[str, Any]) -> dict[str, Any]:
        rope = {name: int(value) for name, value in raw.pop("rope_parameters").items() if type(value) is float}
        theta = rope.pop("rope_theta")
        scaling = {**rope, "original_max_position_embeddings": 8192, "rope_type": "llama3"}
        old = {"attn_temperature_tuning": 4, "floor_scale": float(raw["floor_scale"]), "no_rope_layers": []}
        return raw | old | {"rope_scaling": scaling, "rope_theta": theta, "for_llm_compressor": False}

    rewrite(checkpoint, change)


def stale_quantisation(checkpoint: Path) -> None:
    """unsloth#1601, #105, open-instruct#149: a merged model with the quantization_config of its training."""
    method = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}
    edit_config(checkpoint, quantization_config=method)


def no_padding(checkpoint: Path) -> None:
    """llama.cpp#2981, transformers#25773: -1, the convention of Meta's tokenizers."""
    edit_config(checkpoint, pad_token_id=-1)


def stops_beyond_the_vocabulary(checkpoint: Path) -> None:
    """vllm test_maverick.py: a reduced model with the original's generation_config.json."""
    edit_config(checkpoint, eos_token_id=STOPS, bos_token_id=200000, pad_token_id=None)
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": STOPS, "bos_token_id": 200000}))


def stale_index(checkpoint: Path) -> None:
    """huggingface_hub#4391, vmlx-swift#388: an entry without a tensor, a tensor without an entry."""
    name = "model.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4"
    shard(checkpoint, {name: "model-00001-of-00002.safetensors"}, unlisted="model.norm.weight")


def other_class(checkpoint: Path) -> None:
    """vllm#16798: `model_type` decides, not the trainer's class."""
    edit_config(checkpoint, architectures=["LlamaForCausalLM"], cache_implementation="hybrid", auto_map={"a": "b.c"})


def text_under_the_whole_config(checkpoint: Path) -> None:
    """mlx-lm#74: a text model saved with its base's nested config."""
    rewrite(checkpoint, lambda raw: {"model_type": "llama4", "architectures": ["Llama4ForCausalLM"],
                                     "text_config": raw, "vision_config": {}})  # fmt: skip


def other_files_beside(checkpoint: Path) -> None:
    """mlx-vlm#1464, unsloth-zoo#808: only what the index names is read."""
    shard(checkpoint, {})
    zeros = {"layers.0.attention.wq.weight": np.zeros((4, 4), np.float32)}
    save_file(zeros, checkpoint / "consolidated.safetensors")
    save_file({"model.norm.weight": np.zeros(64, np.float32)}, checkpoint / "model-00001-of-00003.safetensors")
    (checkpoint / "consolidated.00.pth").write_bytes(b"\x80\x02")


def scales_of_a_cache(checkpoint: Path) -> None:
    """What ModelOpt and llm-compressor leave in a float model after calibrating its cache."""
    weights = load_file(checkpoint / "model.safetensors")
    scale = np.asarray([0.02], np.float32)
    for layer, kind in ((0, "k_scale"), (0, "v_scale"), (1, "k_proj.k_scale"), (1, "v_proj.output_scale")):
        weights[f"model.layers.{layer}.self_attn.{kind}"] = scale
    save_file(weights, checkpoint / "model.safetensors")


def nothing_in_numbers(checkpoint: Path) -> None:
    """Null and 0 in fields that the lists of layers make irrelevant, an empty quantization_config, swish for silu."""
    edit_config(checkpoint, no_rope_layer_interval=0, interleave_moe_layer_step=None,
                quantization_config={}, hidden_act="swish", num_key_value_heads=2.0, use_cache="often")  # fmt: skip


SAME = [cut_lists, first_release, stale_quantisation, no_padding, stops_beyond_the_vocabulary, stale_index, other_class,
        text_under_the_whole_config, other_files_beside, scales_of_a_cache, nothing_in_numbers]  # fmt: skip


@pytest.mark.parametrize("change", SAME, ids=lambda change: change.__name__)
def test_the_same_model_in_other_words(workshop: Workshop, tmp_path: Path, change: Callable[[Path], None]) -> None:
    """It plans to the same engine, and parity would compare it with the same model."""
    plain = workshop.checkpoint("scout")
    checkpoint = copy_checkpoint(plain, tmp_path / "c")
    change(checkpoint)
    expected, found = (plan_build(path, BuildOptions(max_context=128)) for path in (plain, checkpoint))
    tokens = {name: getattr(expected.config, name) for name in ("bos_token_id", "eos_token_ids", "pad_token_id")}
    assert dataclasses.replace(found.config, **tokens) == expected.config
    assert found.data_files == expected.data_files
    ids = random_ids((1, 60))
    np.testing.assert_array_equal(HFReference(checkpoint).logits(ids), workshop.reference("scout").logits(ids))


@pytest.mark.parametrize("change", SAME, ids=lambda change: change.__name__)
def test_written_again_transformers_takes_it(
    workshop: Workshop, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """Its config.json has no field that transformers refuses, for servers read it with transformers' classes."""
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    change(checkpoint)
    policy = Policy((Rule(("model.layers.*.feed_forward.*_proj.weight", "model.layers.*.experts.*"), "int8", 32),))
    build(checkpoint, tmp_path / "w", BuildOptions(target="compressed-tensors", policy=policy))
    report = check_parity(tmp_path / "w", checkpoint, 40, 4, dequantized=True)
    assert report.passed and report.prefill.max_relative_difference < 1e-5


def test_tokens_and_notes_of_those(workshop: Workshop, tmp_path: Path) -> None:
    for number, (change, note) in enumerate([
        (stops_beyond_the_vocabulary, None),
        (stale_quantisation, "quantization_config ('bitsandbytes') is ignored: all weights are float"),
        (scales_of_a_cache, "4 scales of a quantised KV cache are ignored, such as 'model.layers.0.self_attn.k_scale'"),
        (lambda path: (path / "tokenizer.model").write_text("YQ== 0"), "text needs a tokenizer.json"),
    ]):  # fmt: skip
        checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / str(number))
        change(checkpoint)  # type: ignore[operator]
        opened = open_checkpoint(checkpoint)
        if note is None:
            assert (opened.config.bos_token_id, opened.config.eos_token_ids, opened.notes()) == (None, (), [])
        else:
            assert len(opened.notes()) == 1 and note in opened.notes()[0] and str(checkpoint) in opened.notes()[0]


def built_equals_reference(checkpoint: Path, tmp_path: Path, **options: Any) -> np.ndarray:
    """Build, and compare all logits of prefill and decode with those of transformers, which are returned."""
    build(checkpoint, tmp_path / "e", BuildOptions(max_context=128, **options))
    ids = random_ids(70)
    session = runtimes.load(tmp_path / "e").session()
    got = [session.append(ids[:50])] + [session.append(ids[at : at + 1]) for at in range(50, 70)]
    expected = HFReference(checkpoint).logits(ids[None])
    assert_close(np.concatenate(got, axis=1), expected, 1e-2 if options.get("dtype") == "fp16" else 1e-4)
    return expected


LLAMA3 = {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    "changes",
    [
        # vllm#28542, SkyRL#690, sglang#14745: both spellings beside each other
        {"rope_parameters": {**LLAMA3, "rope_theta": 1e4, "original_max_position_embeddings": 64},
          "rope_scaling": {}},
        # unsloth#7028, LlamaFactory#8664
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    ],
    ids=["empty beside new", "linear", "dynamic"],
)  # fmt: skip
def test_rope_settings(workshop: Workshop, tmp_path: Path, changes: dict[str, Any]) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    edit_config(checkpoint, **changes)
    expected = built_equals_reference(checkpoint, tmp_path)
    plain = workshop.reference("scout").logits(random_ids(70)[None])
    assert np.abs(expected - plain).max() > 0.01 * np.abs(plain).max()  # the settings do something


@pytest.mark.parametrize("variant", ["scout", "maverick"])  # with QK norm, which takes the factor back, and without
@pytest.mark.parametrize("layout", LAYOUTS)
def test_yarn_scales_what_it_rotates(workshop: Workshop, tmp_path: Path, variant: str, layout: str) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint(variant), tmp_path / "c")
    edit_config(checkpoint, rope_parameters={**YARN, "rope_theta": 1e4})
    built_equals_reference(checkpoint, tmp_path, kv_layout=layout)


def test_yarn_in_float16(workshop: Workshop, tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("maverick"), tmp_path / "c")
    edit_config(checkpoint, rope_parameters={**YARN, "rope_theta": 1e4})
    built_equals_reference(checkpoint, tmp_path, dtype="fp16")


def test_pruned_experts_with_a_router_of_another_dtype(workshop: Workshop, tmp_path: Path) -> None:
    """llm-compressor#2864 (REAP): three of four experts are kept, bfloat16 beside a float32 router."""
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    weights = load_file(checkpoint / "model.safetensors")
    for name, array in weights.items():
        kept = array[[0, 2, 3]] if ".experts." in name or "router" in name else array
        weights[name] = np.ascontiguousarray(kept if "router" in name else kept.astype(ml_dtypes.bfloat16))
    save_file(weights, checkpoint / "model.safetensors")
    edit_config(checkpoint, num_local_experts=3)
    built_equals_reference(checkpoint, tmp_path)


def test_a_head_tied_in_the_inner_config_alone(workshop: Workshop, tmp_path: Path) -> None:
    """After llama.cpp#16021: a whole model without a head, tied in text_config, with an interval of 0 beside a list."""
    plain = workshop.checkpoint("mobile")
    checkpoint = copy_checkpoint(plain, tmp_path / "c")
    weights = {f"language_model.{name}": array for name, array in load_file(plain / "model.safetensors").items()}
    save_file(weights, checkpoint / "model.safetensors")
    rewrite(checkpoint, lambda raw: {"model_type": "llama4", "text_config": raw | {"no_rope_layer_interval": 0}})
    expected = built_equals_reference(checkpoint, tmp_path)
    np.testing.assert_array_equal(expected, workshop.reference("mobile").logits(random_ids(70)[None]))


@pytest.mark.parametrize("generation", [{"temperature": 0.6}, {"eos_token_id": None}, {}])
def test_a_generation_config_without_stop_tokens_leaves_those_of_the_config(
    workshop: Workshop, tmp_path: Path, generation: dict[str, Any]
) -> None:
    """exllamav2#449, mlx-vlm#2112."""
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    edit_config(checkpoint, eos_token_id=[2, 7])
    (checkpoint / "generation_config.json").write_text(json.dumps(generation))
    assert open_checkpoint(checkpoint).config.eos_token_ids == (2, 7)


def test_text_for_an_engine_without_a_tokenizer(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    """Meta's own folders have a tokenizer.model alone: the message says where a tokenizer.json comes from."""
    with pytest.raises(SystemExit) as caught:
        main(["run", str(workshop.engine_path("scout", "static")), "--prompt", "hi"])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and "give --token-ids, or put one into the checkpoint, as transformers'" in error
