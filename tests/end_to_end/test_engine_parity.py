"""The main claim: an engine computes what transformers computes, with every feature on, past chunk boundaries."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.errors import InputError
from l4export.reference.transformers_model import HFReference
from workshop import LAYOUTS, VARIANTS, Workshop, assert_close, copy_checkpoint, edit_config, random_ids

PREFILL, DECODE = 50, 30  # 80 tokens in chunks of 16: four boundaries and more, one of them inside the prefill's tail
engines = pytest.mark.parametrize("layout", LAYOUTS)
variants = pytest.mark.parametrize("variant", [pytest.param(v, marks=pytest.mark.xdist_group(v)) for v in VARIANTS])


@variants
@engines
def test_logits_of_prefill_and_decode(workshop: Workshop, variant: str, layout: str) -> None:
    ids = random_ids(PREFILL + DECODE)
    session = workshop.engine(variant, layout).session()
    got = [session.append(ids[:PREFILL])] + [session.append(ids[at : at + 1]) for at in range(PREFILL, len(ids))]
    assert_close(np.concatenate(got, axis=1), workshop.reference(variant).logits(ids[None]))


@variants
@engines
def test_greedy_tokens(workshop: Workshop, variant: str, layout: str) -> None:
    prompt = random_ids(PREFILL, seed=1).tolist()
    got = list(workshop.engine(variant, layout).generate(prompt, max_new_tokens=64, stop_token_ids=()))
    assert got == workshop.greedy(variant, prompt, 64)


@variants
@engines
def test_greedy_tokens_of_a_batch_of_different_lengths(workshop: Workshop, variant: str, layout: str) -> None:
    prompts = [random_ids(n, seed=n).tolist() for n in (50, 17, 33)]
    steps = list(workshop.engine(variant, layout).generate_batch(prompts, max_new_tokens=64, stop_token_ids=()))
    for row, prompt in enumerate(prompts):
        assert [step[row] for step in steps] == workshop.greedy(variant, prompt, 64)


@variants
@engines
def test_rows_that_are_fed_pieces_of_any_size(workshop: Workshop, variant: str, layout: str) -> None:
    ids = random_ids((3, 80), seed=2)
    expected = workshop.reference(variant).logits(ids)
    session = workshop.engine(variant, layout).session(batch=3)
    at = np.zeros(3, dtype=int)
    for counts in [(5, 3, 9), (1, 1, 1), (1, 0, 1), (20, 7, 0), (0, 1, 0), (1, 1, 1), (17, 30, 33), (1, 1, 1)]:
        fed = [ids[row, at[row] : at[row] + count].tolist() for row, count in enumerate(counts)]
        logits = session.append(fed)
        for row, count in enumerate(counts):
            if count:
                assert_close(logits[row, :count], expected[row, at[row] : at[row] + count])
            assert np.isnan(logits[row, count:]).all()
        at += counts
        assert session.lengths.tolist() == at.tolist()


@engines
@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_half_precision_checkpoints_are_read_exactly(
    workshop: Workshop, tmp_path: Path, layout: str, stored: str
) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    dtype = np.dtype(stored) if stored == "float16" else np.dtype(ml_dtypes.bfloat16)
    weights = load_file(checkpoint / "model.safetensors")
    save_file({name: array.astype(dtype) for name, array in weights.items()}, checkpoint / "model.safetensors")
    build(checkpoint, tmp_path / "e", BuildOptions(kv_layout=layout, max_context=128))
    ids = random_ids(60)
    assert_close(runtimes.load(tmp_path / "e").session().append(ids)[0], HFReference(checkpoint).logits(ids[None])[0])


@variants
def test_a_float16_engine_is_close(workshop: Workshop, tmp_path: Path, variant: str) -> None:
    build(workshop.checkpoint(variant), tmp_path / "e", BuildOptions(dtype="fp16", max_context=128))
    ids = random_ids(60)
    got = runtimes.load(tmp_path / "e").session().append(ids)[0]
    expected = workshop.reference(variant).logits(ids[None])[0]
    # float16 keeps 11 bits; a position whose router is nearly tied may take another expert, hence the median.
    assert np.median(np.abs(got - expected).max(axis=1)) <= 1e-2 * np.abs(expected).max()


def test_the_text_part_of_a_multimodal_checkpoint(workshop: Workshop, tmp_path: Path) -> None:
    source = workshop.checkpoint("scout")
    checkpoint = copy_checkpoint(source, tmp_path / "c")
    weights = load_file(source / "model.safetensors")
    prefixed = {f"language_model.{name}": array for name, array in weights.items()}
    prefixed["vision_model.class_embedding"] = np.zeros(8, dtype=np.float32)
    save_file(prefixed, checkpoint / "model.safetensors")
    text = json.loads((source / "config.json").read_text())
    outer = {"model_type": "llama4", "architectures": ["Llama4ForConditionalGeneration"], "text_config": text}
    (checkpoint / "config.json").write_text(json.dumps({**outer, "vision_config": {}, "image_token_index": 251}))
    build(checkpoint, tmp_path / "e", BuildOptions(max_context=128, vision="none"))
    ids = random_ids(60)
    assert_close(
        runtimes.load(tmp_path / "e").session().append(ids)[0], workshop.reference("scout").logits(ids[None])[0]
    )


def test_a_config_of_transformers_4_gives_the_same_engine(workshop: Workshop, tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    config = json.loads((checkpoint / "config.json").read_text())
    rope = config.pop("rope_parameters")
    theta = rope.pop("rope_theta")
    old = {"rope_scaling": rope, "rope_theta": theta, "attn_temperature_tuning": 4, "no_rope_layers": []}
    config.pop("layer_types", None)
    (checkpoint / "config.json").write_text(json.dumps({**config, **old, "for_llm_compressor": False}))
    new = build(workshop.checkpoint("scout"), tmp_path / "new")
    same = build(checkpoint, tmp_path / "old")
    assert same.files == new.files


def test_whole_numbers_and_fractions_mean_the_same_to_the_reference(workshop: Workshop, tmp_path: Path) -> None:
    """transformers refuses an integer where it declares a float, and the other way round; JSON does not tell them
    apart."""
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    edit_config(checkpoint, attn_scale=1, rms_norm_eps=1, floor_scale=8.0)
    build(checkpoint, tmp_path / "e", BuildOptions(max_context=128))
    ids = random_ids(60)
    assert_close(runtimes.load(tmp_path / "e").session().append(ids)[0], HFReference(checkpoint).logits(ids[None])[0])


@pytest.mark.parametrize("seed", range(6))
def test_random_architectures(workshop: Workshop, tmp_path: Path, seed: int) -> None:
    """Widths, counts and per-layer switches that no released model has: everything comes from the config."""
    rng = np.random.default_rng(seed)
    layers, head_dim, kv_heads = int(rng.integers(2, 6)), int(rng.choice([8, 16, 24])), int(rng.choice([1, 2, 3]))
    config = {
        "num_hidden_layers": layers,
        "hidden_size": int(rng.choice([48, 80])),
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * int(rng.choice([1, 2, 3])),
        "head_dim": head_dim,
        "num_local_experts": int(rng.choice([3, 5])),
        "num_experts_per_tok": int(rng.choice([1, 2, 3])),
        "moe_layers": sorted(rng.choice(layers, rng.integers(1, layers + 1), replace=False).tolist()),
        "no_rope_layers": rng.integers(0, 2, layers).tolist(),
        "layer_types": rng.choice(["chunked_attention", "full_attention"], layers).tolist(),
        "attention_chunk_size": int(rng.choice([7, 11, 16])),
        "use_qk_norm": bool(rng.integers(2)),
        "attn_temperature_tuning": bool(rng.integers(2)),
        "floor_scale": int(rng.choice([5, 8])),
        "intermediate_size": 40,
        "intermediate_size_mlp": 56,
        "vocab_size": 100,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    checkpoint = _random_checkpoint(tmp_path / "c", workshop.checkpoint("scout"), config, rng)
    ids = random_ids((2, 60), vocab=100, seed=seed)
    expected = HFReference(checkpoint).logits(ids)
    for layout in LAYOUTS:
        build(checkpoint, tmp_path / layout, BuildOptions(kv_layout=layout, max_context=64))
        session = runtimes.load(tmp_path / layout).session(batch=2)
        got = [session.append(ids[:, :40])] + [session.append(ids[:, at : at + 1]) for at in range(40, 60)]
        assert_close(np.concatenate(got, axis=1), expected)


def _random_checkpoint(path: Path, template: Path, config: dict[str, object], rng: np.random.Generator) -> Path:
    import torch
    import transformers

    raw = {**json.loads((template / "config.json").read_text()), **config}
    model = transformers.Llama4ForCausalLM(transformers.Llama4TextConfig.from_dict(raw))
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise / 4 if "norm" in name else noise * (1 if "embed" in name else 0.2))
    model.save_pretrained(path)
    return path


def test_a_chunk_size_of_null_is_plain_causal_attention(workshop: Workshop, tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    edit_config(checkpoint, attention_chunk_size=None)
    build(checkpoint, tmp_path / "e", BuildOptions(max_context=128))
    ids = random_ids(60)
    expected = HFReference(checkpoint).logits(ids[None])[0]
    assert_close(runtimes.load(tmp_path / "e").session().append(ids)[0], expected)
    chunked = workshop.reference("scout").logits(ids[None])[0]
    assert np.abs(expected - chunked).max() > 0.1 * np.abs(expected).max()  # the switch does something


def test_a_stored_head_wins_over_tied_embeddings(workshop: Workshop, tmp_path: Path) -> None:
    """As in transformers, which ties only what is not stored."""
    checkpoint = copy_checkpoint(workshop.checkpoint("mobile"), tmp_path / "c")
    weights = load_file(checkpoint / "model.safetensors")
    weights["lm_head.weight"] = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32) / 3
    save_file(weights, checkpoint / "model.safetensors")
    build(checkpoint, tmp_path / "e", BuildOptions(max_context=128))
    ids = random_ids(60)
    expected = HFReference(checkpoint).logits(ids[None])[0]
    assert_close(runtimes.load(tmp_path / "e").session().append(ids)[0], expected)
    assert np.abs(expected - workshop.reference("mobile").logits(ids[None])[0]).max() > 0.1


def test_the_outer_config_does_not_tie_embeddings(workshop: Workshop, tmp_path: Path) -> None:
    """transformers reads tie_word_embeddings from the text config alone; without a head there is no such model."""
    checkpoint = copy_checkpoint(workshop.checkpoint("mobile"), tmp_path / "c")
    text = json.loads((checkpoint / "config.json").read_text())
    del text["tie_word_embeddings"]
    outer = {"model_type": "llama4", "text_config": text, "tie_word_embeddings": True}
    (checkpoint / "config.json").write_text(json.dumps(outer))
    with pytest.raises(InputError, match=r"lm_head\.weight.*missing"):
        build(checkpoint, tmp_path / "e")


def test_stop_tokens_of_the_generation_config_win(workshop: Workshop, tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert build(checkpoint, tmp_path / "e").model.eos_token_ids == (7, 9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_context_too_long_for_rotation_tables(workshop: Workshop, tmp_path: Path, layout: str) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    edit_config(checkpoint, max_position_embeddings=10_485_760)
    manifest = build(checkpoint, tmp_path / "e", BuildOptions(kv_layout=layout, max_context=10_485_760))
    assert sum(record.bytes for record in manifest.files.values()) < 2_000_000
    ids = random_ids(80)
    session = runtimes.load(tmp_path / "e").session(capacity=100)
    got = [session.append(ids[:50])] + [session.append(ids[at : at + 1]) for at in range(50, 80)]
    assert_close(np.concatenate(got, axis=1)[0], workshop.reference("scout").logits(ids[None])[0])
