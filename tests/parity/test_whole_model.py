"""The comparison itself: its figures agree with plain definitions; its verdicts and near ties are right."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.errors import CheckFailed, InputError
from l4export.parity.figures import figures_of
from l4export.parity.logits import compare_logits, divergences
from l4export.parity.whole_model import check_parity
from l4export.quantization.policy import standard_policy
from workshop import Workshop, copy_checkpoint


def _logits(seed: int, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((7, 50)) * scale).astype(np.float32)


def test_equal_logits() -> None:
    figures = compare_logits(_logits(0), _logits(0))
    assert (figures.max_abs_difference, figures.kl_max, figures.top1_agreement, figures.top5_overlap) == (0, 0, 1, 1)


def test_figures_against_their_definitions() -> None:
    reference, engine = _logits(0), _logits(0) + _logits(1, 0.5)
    figures = compare_logits(reference, engine)
    p, q = (
        np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(1, keepdims=True) for x in (reference, engine)
    )
    kl = (p * np.log(p / q)).sum(axis=1)
    difference = np.abs(reference.astype(np.float64) - engine)
    assert figures.max_abs_difference == difference.max()
    assert figures.worst_position == difference.max(axis=1).argmax()
    assert figures.max_relative_difference == difference.max() / np.abs(reference).max()
    assert figures.mean_abs_difference == pytest.approx(difference.mean(), rel=1e-12)
    assert figures.kl_mean == pytest.approx(kl.mean(), rel=1e-9)  # float64 sums in another order
    assert figures.kl_max == pytest.approx(kl.max(), rel=1e-9)
    assert figures.top1_agreement == (reference.argmax(1) == engine.argmax(1)).mean()
    top5 = [len(set(np.argsort(-a)[:5]) & set(np.argsort(-b)[:5])) / 5 for a, b in zip(reference, engine, strict=True)]
    assert figures.top5_overlap == pytest.approx(np.mean(top5))


def test_near_ties_are_told_apart_from_disagreements() -> None:
    reference, engine = np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32)
    reference[0, :2], engine[0, :2] = (10.0, 9.9985), (9.9985, 10.0)  # 1.5e-4 of the largest: a near tie
    reference[1, :2], engine[1, :2] = (10.0, 9.99), (9.99, 10.0)
    figures = compare_logits(reference, engine, accepted=1e-4)
    assert (figures.near_ties, figures.top1_agreement) == (1, 0.5)


def test_logits_that_are_not_finite_are_refused() -> None:
    broken = _logits(0)
    broken[3, 4] = np.nan
    with pytest.raises(CheckFailed, match="the engine's logits at position 3"):
        compare_logits(_logits(0), broken)
    with pytest.raises(InputError, match="the reference's logits at position 3"):
        compare_logits(broken, _logits(0))
    assert np.isnan(divergences(broken, _logits(0))).tolist() == [False] * 3 + [True] + [False] * 3


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(InputError, match="not comparable"):
        compare_logits(_logits(0), _logits(0)[:5])


def test_a_report_says_how_far_it_went(workshop: Workshop) -> None:
    report = check_parity(workshop.engine_path("scout", "static"), workshop.checkpoint("scout"), 50, 30)
    assert report.passed
    assert (report.prefill.positions, report.decode.positions, report.chunk_boundaries) == (50, 30, 4)  # type: ignore[union-attr]
    assert report.greedy_prefix == 1
    assert json.loads(report.to_json())["verdict"] == "passed"


@pytest.mark.parametrize("dequantized", [False, True])
@pytest.mark.parametrize(
    ("other", "field"),
    [("maverick", "moe_layers"), ("mobile", "num_local_experts"), ("scout-top2", "num_experts_per_tok")],
)
def test_a_reference_of_another_architecture_is_refused(
    workshop: Workshop, other: str, field: str, dequantized: bool
) -> None:
    """Nothing is demanded of an engine with this cache, so no threshold would show it."""
    engine = workshop.engine_path("scout", "static", 256, "int8")
    with pytest.raises(InputError, match=rf"another model than the engine's \({field} differs\)"):
        check_parity(engine, workshop.checkpoint(other), 4, 0, dequantized=dequantized)


def test_full_attention_crosses_no_boundaries(workshop: Workshop) -> None:
    report = check_parity(workshop.engine_path("guard", "static"), workshop.checkpoint("guard"), 20, 4)
    assert (report.passed, report.chunk_boundaries) == (True, 0)


def test_a_threshold_can_be_tightened_until_it_fails(workshop: Workshop) -> None:
    engine, checkpoint = workshop.engine_path("scout", "static"), workshop.checkpoint("scout")
    report = check_parity(engine, checkpoint, 20, 4, thresholds={"max_abs_difference": 1e-9})
    assert not report.passed
    assert "max_abs_difference" in report.failures[0]


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.self_attn.q_proj.weight",
        "layers.1.feed_forward.experts.gate_up_proj",
        "layers.2.feed_forward.router.weight",
        "layers.3.post_attention_layernorm.weight",
        "norm.weight",
    ],
)
def test_one_wrong_tensor_is_noticed(workshop: Workshop, tmp_path: Path, name: str) -> None:
    other = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    weights = load_file(other / "model.safetensors")
    weights[f"model.{name}"] = np.ascontiguousarray(weights[f"model.{name}"][..., ::-1])
    save_file(weights, other / "model.safetensors")
    assert not check_parity(workshop.engine_path("scout", "static"), other, 30, 4).passed


def test_tokens_that_tie_are_not_reported_as_agreement(workshop: Workshop, tmp_path: Path) -> None:
    """The rows of the head come in nearly equal pairs that the engine swaps, so every greedy token is a near tie."""
    reference, swapped = (copy_checkpoint(workshop.checkpoint("scout"), tmp_path / n) for n in ("r", "s"))
    weights = load_file(reference / "model.safetensors")
    head = weights["lm_head.weight"]
    head[1::2] = head[0::2] * np.float32(1 + 2e-6)
    save_file(weights, reference / "model.safetensors")
    weights["lm_head.weight"] = np.ascontiguousarray(head.reshape(-1, 2, head.shape[1])[:, ::-1].reshape(head.shape))
    save_file(weights, swapped / "model.safetensors")
    build(swapped, tmp_path / "e", BuildOptions(max_context=64))
    report = check_parity(tmp_path / "e", reference, 20, 8)
    assert report.passed
    assert report.greedy_prefix < 1
    assert report.greedy_ended_at_near_tie
    demanded = check_parity(tmp_path / "e", reference, 20, 8, {"greedy_prefix": 1.0})
    assert demanded.verdict == "not judged" and "ended at a near tie" in demanded.unjudged[0]
    (share,) = (figure for figure in figures_of(demanded) if figure.phase == "greedy")
    assert (share.status, share.remark[:20]) == ("not demanded", "it ended at a near t")
    met = check_parity(tmp_path / "e", reference, 20, 8, {"greedy_prefix": report.greedy_prefix})
    assert met.passed and figures_of(met)[-1].status == "met"


def test_a_continuation_of_no_tokens_meets_no_threshold(workshop: Workshop) -> None:
    engine, checkpoint = workshop.engine_path("scout", "static"), workshop.checkpoint("scout")
    with pytest.raises(InputError, match="--threshold greedy_prefix: nothing is generated with --decode 0"):
        check_parity(engine, checkpoint, 20, 0, {"greedy_prefix": 0.5})
    report = check_parity(engine, checkpoint, 20, 0)
    assert report.passed and "greedy_prefix" not in report.thresholds


def test_an_engine_of_a_target_that_is_not_known_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    """A runtime goes by the manifest's runtime; parity must know whether the target rounds activations."""
    options = BuildOptions(max_context=64, policy=standard_policy("int8"))
    manifest = build(workshop.checkpoint("guard"), tmp_path / "e", options)
    (tmp_path / "e" / "manifest.json").write_text(dataclasses.replace(manifest, target="another").to_json())
    with pytest.raises(InputError, match="target 'another' is none that this l4export builds for"):
        check_parity(tmp_path / "e", workshop.checkpoint("guard"), prefill=4, decode=2, dequantized=True)
