"""Near ties of experts: what they do to a comparison, and that the reference follows there and nowhere else."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from l4export.checkpoint import open_checkpoint, sample
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.parity.by_layer import check_layers
from l4export.parity.whole_model import check_parity
from l4export.quantization.policy import standard_policy
from l4export.reference.routing_ties import Choice, follow_ties, followed_choices, likeliest
from l4export.reference.streamed_model import StreamedReference
from l4export.reference.transformers_model import HFReference
from workshop import ROOT, Workshop, copy_checkpoint, random_ids

EXAMPLE = ROOT / "examples" / "kjv" / "model"
IDS = random_ids(100, seed=3)
ROUTED = ("scout", "maverick", "maverick-top2")


DEEP = (
    ("ort-cpu", "fp32", "none", 1e-9),
    ("ort-cpu", "fp16", "none", 1e-4),
    ("onnx", "fp16", "none", 1e-4),
    ("ort-cpu", "fp32", "int4", 3e-2),
    ("ort-cpu", "fp16", "int8", 3e-2),
)
"""Target, dtype, scheme, and twice the mean KL or so that was measured behind 48 layers."""


def gaps(reference: HFReference) -> dict[Choice, float]:
    """Of every choice, as a share of the layer's largest |router logit|."""
    count, found = reference.config.num_experts_per_tok, {}
    for layer, logits in reference.routed(IDS, ())[1].items():
        best = -np.sort(-logits, axis=1)
        for position, gap in enumerate((best[:, count - 1] - best[:, count]) / np.abs(logits).max()):
            found[layer, position] = float(gap)
    return found


class Counted:
    """A reference that is asked no more often than there are explanations to try."""

    def __init__(self, reference: HFReference) -> None:
        self.reference, self.calls = reference, 0

    def routed(self, token_ids: Any, swapped: Collection[Choice]) -> Any:
        self.calls += 1
        return self.reference.routed(token_ids, swapped)


def follow(reference: HFReference, swapped: Collection[Choice], accepted: float) -> tuple[Any, np.ndarray, int]:
    """What is found for an engine that chose otherwise in `swapped`, its logits, and the calls that it took."""
    engine = reference.routed(IDS, swapped)[0]
    counted = Counted(reference)

    def departs(logits: np.ndarray) -> np.ndarray:
        return np.abs(logits - engine).max(axis=1) > 1e-4 * np.abs(logits).max()

    found = follow_ties(counted, IDS, departs, reference.config.num_experts_per_tok, accepted)
    return found, engine, counted.calls


@pytest.mark.parametrize("variant", ROUTED)
def test_the_reference_follows_where_experts_are_nearly_tied(workshop: Workshop, variant: str) -> None:
    reference = workshop.reference(variant)
    tied = sorted((gap, choice) for choice, gap in gaps(reference).items())[:3]
    found, engine, calls = follow(reference, [choice for _, choice in tied], tied[-1][0])
    assert found.swapped == {choice for _, choice in tied}
    assert np.array_equal(found.logits, engine)
    assert calls < 20


@pytest.mark.parametrize("variant", ROUTED)
def test_two_ties_of_one_token_are_found(workshop: Workshop, variant: str) -> None:
    reference = workshop.reference(variant)
    all_gaps = gaps(reference)
    layers = sorted({layer for layer, _ in all_gaps})[:2]
    position = min(range(100), key=lambda p: max(all_gaps[layer, p] for layer in layers))
    swapped = {(layer, position) for layer in layers}
    found, engine, _ = follow(reference, swapped, max(all_gaps[choice] for choice in swapped))
    assert np.array_equal(found.logits, engine)
    assert found.swapped == swapped


@pytest.mark.parametrize("variant", ROUTED)
def test_no_tie_no_following(workshop: Workshop, variant: str) -> None:
    """The clearest choice of all, made otherwise, is a fault; so is that of a token before it."""
    reference = workshop.reference(variant)
    clearest = max((gap, choice) for choice, gap in gaps(reference).items())[1]
    found, engine, calls = follow(reference, [clearest], 1e-3)
    assert not np.allclose(found.logits[clearest[1]], engine[clearest[1]], atol=1e-3)
    assert calls <= 15


def test_the_reference_follows_in_few_choices_only(workshop: Workshop) -> None:
    reference = workshop.reference("scout")
    tied = sorted((gap, choice) for choice, gap in gaps(reference).items())[:40]
    found, engine, _ = follow(reference, [choice for _, choice in tied], tied[-1][0])
    assert 0 < len(found.swapped) <= 0.05 * 400
    assert not np.allclose(found.logits, engine, atol=1e-3)


@pytest.mark.parametrize("variant", ROUTED)
def test_swapped_choices_against_layers_that_are_told_what_to_choose(workshop: Workshop, variant: str) -> None:
    reference = workshop.reference(variant)
    count, routers = reference.config.num_experts_per_tok, reference.routed(IDS, ())[1]
    swapped = {(layer, 7 + 30 * at) for at, layer in enumerate(routers)}
    streamed = StreamedReference(open_checkpoint(workshop.checkpoint(variant)))

    def choose(layer: int) -> Any:
        def chosen(logits: np.ndarray) -> np.ndarray:
            order, taken = likeliest(logits, count + 1), likeliest(logits, count)
            for of, position in swapped:
                if of == layer:
                    taken[position, -1] = order[position, -1]
            return taken

        return chosen

    hidden = streamed.embed(IDS[None])
    for layer in range(streamed.config.num_hidden_layers):
        hidden = streamed.step(layer, hidden, [choose(layer)])[0].hidden
    expected = streamed.logits(hidden)[0]
    got = reference.routed(IDS, swapped)[0]
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()  # float32 sums in another order
    assert np.abs(got - reference.logits(IDS[None])[0]).max() > 1e-3 * np.abs(expected).max()


def test_of_equals_the_first_or_the_last() -> None:
    logits = np.array([[1, 2, 2, 0], [5, 5, 5, 5]], np.float32)
    assert likeliest(logits, 1).tolist() == [[1], [0]]
    assert likeliest(logits, 1, last=True).tolist() == [[2], [3]]
    assert likeliest(logits, 2, last=True).tolist() == [[2, 1], [3, 2]]


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("target", ["ort-cpu", "onnx"])
@pytest.mark.parametrize("quant", ["none", "int4"])
def test_equally_likely_experts_layer_by_layer(
    workshop: Workshop, tmp_path: Path, target: str, dtype: str, quant: str
) -> None:
    """Two experts with the same router row: which of them an engine takes is its operator's affair."""
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    weights = load_file(checkpoint / "model.safetensors")
    for layer in range(4):
        router = weights[f"model.layers.{layer}.feed_forward.router.weight"]
        router[2] = router[1]
    save_file(weights, checkpoint / "model.safetensors")
    options = BuildOptions(target=target, dtype=dtype, max_context=64, policy=standard_policy(quant))
    build(checkpoint, tmp_path / "e", options)
    report = check_layers(tmp_path / "e", checkpoint, 40, 8, dequantized=quant != "none")
    assert report.passed, report.failures
    assert report.logits.max_relative_difference < (5e-2 if quant != "none" else 5e-3)


def test_nothing_swapped_is_the_reference_itself(workshop: Workshop) -> None:
    reference = workshop.reference("scout")
    assert np.array_equal(reference.routed(IDS, ())[0], reference.logits(IDS[None])[0])


def test_choices_that_are_nearly_tied_are_told_apart() -> None:
    reference = np.array([[3.0, 2.9999, 0], [3, 2, 0], [3, 1, 0]], np.float32)
    chosen, differ, near = followed_choices(reference, np.array([[1], [1], [0]]), 1e-4)
    assert (differ.tolist(), near.tolist()) == ([True, True, False], [True, False, False])
    assert chosen.tolist() == [[1], [0], [0]]
    _, differ, _ = followed_choices(reference, np.array([[1, 0], [1, 0], [0, 1]]), 1e-4)
    assert not differ.any()  # the same two, in another order


@pytest.fixture(scope="module")
def example_fp16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fp16") / "engine"
    build(EXAMPLE, path, BuildOptions(dtype="fp16", max_context=1024))
    return path


@pytest.mark.parametrize("seed", [2, 3])
def test_a_float16_engine_of_a_trained_model_is_at_parity(example_fp16: Path, seed: int) -> None:
    """With these seeds some tokens take other experts in float16 (where this was written): 0.14 and 0.25 of the
    largest logit, which the thresholds do not allow."""
    report = check_parity(example_fp16, EXAMPLE, 320, 8, seed=seed)
    assert report.passed, report.failures
    assert report.routing_ties <= 4
    assert report.prefill.max_relative_difference < 5e-3


def test_layer_by_layer_too(example_fp16: Path) -> None:
    report = check_layers(example_fp16, EXAMPLE, 320, 8, seed=3)
    assert report.passed, report.failures
    assert report.logits.max_relative_difference < 5e-3


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["scout", "maverick"])
def test_forty_eight_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    """As deep as the released models: an engine of int8 activations has a hundred near ties in as many tokens, which
    add up to a KL of 0.1 to 0.4 if none is followed."""
    monkeypatch.setitem(sample._SHAPES["tiny"], "num_hidden_layers", 48)
    sample.write_sample(tmp_path / "c", variant, "tiny", seed=0)
    for number, (target, dtype, quant, kl) in enumerate(DEEP):
        engine = tmp_path / f"e{number}"
        policy = standard_policy(quant)
        build(tmp_path / "c", engine, BuildOptions(target=target, dtype=dtype, max_context=128, policy=policy))
        for seed in range(2):
            report = check_layers(engine, tmp_path / "c", 64, 32, seed=seed, dequantized=policy is not None)
            assert report.passed, report.failures
            assert min(item.expert_agreement or 1 for item in report.layers) == 1
            assert report.logits.kl_mean < kl


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (BuildOptions(max_context=128), 1e-3),
        (BuildOptions(max_context=128, dtype="fp16"), 0.1),
        (BuildOptions(max_context=128, policy=standard_policy("int4")), 0.5),
    ],
)
def test_a_wrong_router_is_not_followed(
    workshop: Workshop, tmp_path: Path, options: BuildOptions, error: float
) -> None:
    """Ties within the tolerance are followed, so the router itself must be within it."""
    wrong = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "w")
    weights = load_file(wrong / "model.safetensors")
    name = "model.layers.1.feed_forward.router.weight"
    noise = np.random.default_rng(0).standard_normal(weights[name].shape).astype(np.float32)
    weights[name] = weights[name] + np.float32(error) * weights[name].std() * noise
    save_file(weights, wrong / "model.safetensors")
    build(wrong, tmp_path / "e", options)
    dequantized = options.policy is not None
    right = check_layers(tmp_path / "e", wrong, 60, 4, dequantized=dequantized)
    assert right.passed, right.failures
    report = check_layers(tmp_path / "e", workshop.checkpoint("scout"), 60, 4, dequantized=dequantized)
    assert report.first_departure == 1 and "router by" in report.failures[0]
    assert dequantized or not check_parity(tmp_path / "e", workshop.checkpoint("scout"), 60, 4).passed


def test_many_ties_are_a_fault_of_the_whole_but_of_no_layer(workshop: Workshop, tmp_path: Path) -> None:
    """Two experts of one layer with nearly the same router, and the engine prefers the other one for every token."""
    reference, swapped = (copy_checkpoint(workshop.checkpoint("scout"), tmp_path / n) for n in ("r", "s"))
    weights = load_file(reference / "model.safetensors")
    name = "model.layers.1.feed_forward.router.weight"
    router = weights[name]
    router[:2] = np.abs(router).max() * np.sign(router[:1])
    for path, preferred in ((reference, 0), (swapped, 1)):
        weights[name] = router.copy()
        weights[name][preferred] *= np.float32(1 + 2e-6)
        save_file(weights, path / "model.safetensors")
    build(swapped, tmp_path / "e", BuildOptions(max_context=128))
    assert not check_parity(tmp_path / "e", reference, 60, 4).passed
    layers = check_layers(tmp_path / "e", reference, 60, 4)
    assert layers.passed, layers.failures
    assert (layers.layers[1].near_ties or 0) > 10 and layers.layers[1].expert_agreement == 1
