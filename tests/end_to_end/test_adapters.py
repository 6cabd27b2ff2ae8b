"""Engines built with adapters: those of a checkpoint that has them merged, and of nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from adapters import Weights, of_experts, pair, product, with_weights, write_adapter
from safetensors.numpy import load_file

from l4export import runtimes
from l4export.checkpoint import open_checkpoint
from l4export.checkpoint.sample import write_sample
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.manifest import load_manifest
from l4export.errors import InputError
from l4export.inspection.facts import EngineFacts, inspect
from l4export.model.tensors import tensors
from l4export.parity.by_layer import check_layers
from l4export.parity.whole_model import check_parity
from l4export.quality.measure import measure_quality
from l4export.quantization.policy import standard_policy
from l4export.reference.transformers_model import HFReference
from workshop import Workshop, assert_close, random_ids

EXPERTS, HIDDEN, INNER = 4, 64, 32
DATA = "decoder-00001-of-00001.data"


def adapter_of(layers: int) -> Weights:
    """Of attention and experts in each layer, strong enough that nothing is what it was."""
    found: Weights = {}
    for layer in range(layers):
        attention, experts = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.feed_forward.experts"
        found |= pair(f"{attention}.q_proj", 64, 64) | pair(f"{attention}.v_proj", 32, 64)
        found |= pair(experts, INNER, HIDDEN, 2 * EXPERTS)
        found |= pair(f"{experts}.base_layer", HIDDEN, 2 * INNER, 2 * EXPERTS)
    return found


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", adapter_of(4))


def test_logits_are_those_of_the_merged_weights(workshop: Workshop, tmp_path: Path, adapter: Path) -> None:
    """Weights merged here in NumPy and read by transformers; prefill and decode across the ends of chunks (16)."""
    source, found = workshop.checkpoint("scout"), adapter_of(4)
    weights = {name: values.astype(np.float64) for name, values in load_file(source / "model.safetensors").items()}
    for layer in range(4):
        attention, experts = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.feed_forward.experts"
        for name in (f"{attention}.q_proj", f"{attention}.v_proj"):
            weights[f"{name}.weight"] += product(found, name)
        weights[f"{experts}.down_proj"] += of_experts(found, experts, EXPERTS)
        weights[f"{experts}.gate_up_proj"] += of_experts(found, f"{experts}.base_layer", EXPERTS)
    merged = {name: values.astype(np.float32) for name, values in weights.items()}
    reference = HFReference(with_weights(source, tmp_path / "merged", merged))
    ids = random_ids(41, seed=5)
    expected = reference.logits(ids[None])[0]
    assert np.abs(expected - workshop.reference("scout").logits(ids[None])[0]).max() > 0.1
    build(source, tmp_path / "e", BuildOptions(max_context=64, adapters=(adapter,)))
    session = runtimes.load(tmp_path / "e", threads=1).session()
    got = np.concatenate([session.append(ids[:20])[0], *(session.step([token]) for token in ids[20:].tolist())])
    assert_close(got, expected, 1e-5)
    report = check_parity(tmp_path / "e", source, 20, 21, adapters=[adapter])
    assert report.passed and report.prefill.max_relative_difference < 1e-5
    assert check_layers(tmp_path / "e", source, 20, 21, adapters=[adapter]).passed


@pytest.mark.parametrize("calibrated", [False, True])
def test_int4_of_the_merged_weights_byte_for_byte(
    workshop: Workshop, tmp_path: Path, adapter: Path, calibrated: bool
) -> None:
    """However weights are cut on their way; calibration sees the merged model too."""
    source = workshop.checkpoint("scout")
    opened = open_checkpoint(source, [adapter])
    merged = {name: opened.tensor(name, shape).read() for name, shape in tensors(opened.config).items()}
    plain = with_weights(source, tmp_path / "merged", merged)
    (ids := tmp_path / "ids").write_text(" ".join(map(str, random_ids(300))))
    options = {"max_context": 64, "policy": standard_policy("int4"), "calibrate": ids if calibrated else None}
    build(plain, tmp_path / "a", BuildOptions(**options))
    budget = 400_000  # a layer's experts do not fit
    build(source, tmp_path / "b", BuildOptions(**options, adapters=(adapter,), memory_budget=budget, jobs=2))
    assert (tmp_path / "a" / DATA).read_bytes() == (tmp_path / "b" / DATA).read_bytes()


def test_a_changed_adapter_is_another_source(workshop: Workshop, tmp_path: Path, adapter: Path) -> None:
    source, notices = workshop.checkpoint("scout"), list[str]()
    options = BuildOptions(max_context=64, adapters=(adapter,), force=True)

    def built() -> tuple[bytes, str]:
        notices.clear()
        build(source, tmp_path / "e", options, on_notice=notices.append)
        return (tmp_path / "e" / DATA).read_bytes(), " ".join(notices)

    first, _ = built()
    manifest = load_manifest(tmp_path / "e")
    assert {"adapter_config.json.1", "adapter_model.safetensors.1"} < set(manifest.source)
    again, told = built()
    assert again == first and "up to date" in told
    file = adapter / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = np.float32(0.5).tobytes()
    file.write_bytes(data)  # of the same size and header
    changed, told = built()
    assert changed != first and "up to date" not in told and "taken over" not in told
    build(source, tmp_path / "e", BuildOptions(max_context=64, force=True), on_notice=notices.append)
    assert (tmp_path / "e" / DATA).read_bytes() not in (first, changed)


def test_a_reference_has_the_same_adapters(workshop: Workshop, tmp_path: Path, adapter: Path) -> None:
    source = workshop.checkpoint("scout")
    other = write_adapter(tmp_path / "other", adapter_of(3))
    plain, engine, two = (tmp_path / name for name in ("plain", "one", "two"))
    for path, adapters in ((plain, ()), (engine, (adapter,)), (two, (adapter, other))):
        build(source, path, BuildOptions(max_context=64, adapters=adapters))
    (text := tmp_path / "ids").write_text(" ".join(map(str, random_ids(130))))
    missing = r"was built with 1 adapter, and the reference has no adapter; name those that .* by --adapter"
    for check in (check_parity, check_layers):
        with pytest.raises(InputError, match=missing):
            check(engine, source, 8, 2)
        with pytest.raises(InputError, match="was built with no adapter, and the reference has 1 adapter"):
            check(plain, source, 8, 2, adapters=[adapter])
        with pytest.raises(
            InputError, match=r"other: adapter_model\.safetensors is not what the engine was built with"
        ):
            check(engine, source, 8, 2, adapters=[other])
        with pytest.raises(InputError, match="name the same adapters in the same order"):
            check(two, source, 8, 2, adapters=[other, adapter])
        assert check(two, source, 20, 2, adapters=[adapter, other]).passed
    with pytest.raises(InputError, match=missing):
        measure_quality(engine, source, text)
    assert measure_quality(engine, source, text, adapters=[adapter]).kl.value < 1e-6


def test_some_layers_and_what_inspect_says(workshop: Workshop, tmp_path: Path, adapter: Path) -> None:
    source = workshop.checkpoint("maverick")
    dense = pair("model.layers.2.feed_forward.gate_proj", 96, HIDDEN)
    second = write_adapter(tmp_path / "second", dense | pair("lm_head", 256, HIDDEN), use_rslora=True)
    options = BuildOptions(max_context=64, adapters=(second,), layers=(1, 4))
    build(source, tmp_path / "e", options)
    assert check_parity(tmp_path / "e", source, 20, 4, adapters=[second]).passed
    facts = inspect(tmp_path / "e")
    assert isinstance(facts, EngineFacts)
    said = "rank-stabilised LoRA, rank 2, alpha 3.0, in 2 weights: dense MLP, head"
    assert facts.adapters == {"1: second": said}
    with pytest.raises(InputError, match=r"layers\.0\.feed_forward\.experts\..* belongs to no weight"):
        build(source, tmp_path / "e2", BuildOptions(max_context=64, adapters=(adapter,)))  # of a Scout


def test_an_adapter_of_the_tower(tmp_path: Path) -> None:
    write_sample(tmp_path / "c", "scout", "tiny", seed=3, vision=True)
    found = pair("vision_model.model.layers.1.mlp.fc2", 32, 128) | pair("multi_modal_projector.linear_1", 64, 48)
    found |= pair("language_model.model.layers.0.self_attn.k_proj", 32, 64)
    adapter = write_adapter(tmp_path / "adapter", found, target_modules="all-linear")
    build(tmp_path / "c", tmp_path / "e", BuildOptions(max_context=128, adapters=(adapter,)))
    for check in (check_parity, check_layers):
        assert check(tmp_path / "e", tmp_path / "c", 20, 4, images="seeded", adapters=[adapter]).passed
