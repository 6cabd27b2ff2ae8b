"""What reports show of positions, layers and experts, on engines that are run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.parity.by_layer import check_layers
from l4export.parity.figures import figures_of
from l4export.parity.positions import position_figures
from l4export.parity.sections import sections_of
from l4export.parity.whole_model import check_parity
from l4export.reports.sections import Counts, Curve
from workshop import Workshop, copy_checkpoint


def test_figures_of_positions_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((6, 20)).astype(np.float32)
    engine = reference + rng.standard_normal((6, 20)).astype(np.float32) * np.linspace(0, 0.5, 6)[:, None]
    found = position_figures(reference, engine.astype(np.float32), np.arange(6), None)
    expected = np.abs(engine - reference).max(axis=1) / np.abs(reference).max()
    assert found.difference == pytest.approx(expected, rel=5e-3)  # three significant digits
    p, q = (np.exp(side) / np.exp(side).sum(axis=1, keepdims=True) for side in (reference, engine))
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(axis=1), rel=5e-3, abs=1e-7)  # float32 sums
    order = [token.position for token in found.worst]
    assert order == np.argsort(-np.asarray(found.kl)).tolist()[:5] and found.worst[0].kl == pytest.approx(
        max(found.kl), rel=5e-3
    )
    last = next(token for token in found.worst if token.position == 5)
    assert (last.context, last.following) == ("0 1 2 3 4 5", "")
    assert last.reference[0][0] == str(reference[5].argmax()) and last.engine[0][0] == str(engine[5].argmax())


def test_a_whole_model(workshop: Workshop) -> None:
    report = check_parity(workshop.engine_path("scout", "static"), workshop.checkpoint("scout"), 40, 8)
    along, kl, ties, worst = sections_of(report)
    assert isinstance(along, Curve) and len(along.points) == 48 and along.marks == (16.0, 32.0)
    assert (along.limit, along.note) == (1e-4, "Decoding begins at position 40.")
    assert sum(int(count) for _, count, _ in kl.table.rows) == 48 and len(worst.table.rows) == 5
    assert ties.table.rows[-1] == ("the greedy continuation ended at one", "no")
    phases = {figure.phase for figure in figures_of(report)}
    assert phases == {"prefill", "decode", "greedy"}
    missed = [
        figure for figure in figures_of(dataclasses.replace(report, thresholds={"kl_max": 0.0, "top1_agreement": 1.0}))
    ]
    assert [(figure.phase, figure.name) for figure in missed if figure.status == "missed"] == [
        ("prefill", "kl_max"),
        ("decode", "kl_max"),
    ]


def test_layers_and_experts(workshop: Workshop, tmp_path: Path) -> None:
    other = copy_checkpoint(workshop.checkpoint("maverick"), tmp_path / "c")
    weights = load_file(other / "model.safetensors")
    weights["model.layers.2.self_attn.v_proj.weight"] *= np.float32(1.1)
    save_file(weights, other / "model.safetensors")
    build(other, tmp_path / "e", BuildOptions(max_context=64))
    report = check_layers(tmp_path / "e", workshop.checkpoint("maverick"), 30, 4)
    layers, experts, *_ = sections_of(report)
    assert isinstance(layers, Curve) and layers.marks == (2,) and layers.note == "Layer 2 is the first to depart."
    assert isinstance(experts, Counts) and [label for label, _ in experts.rows] == ["1", "3"]
    assert [sum(counts) for _, counts in experts.rows] == [34, 34]  # one expert a token
    departed = {figure.phase for figure in figures_of(report) if figure.status == "missed"}
    assert {"layer 2", "layer 3"} <= departed and not {"layer 0", "layer 1"} & departed
    cached = check_layers(workshop.engine_path("scout", "static", 256, "int8"), workshop.checkpoint("scout"), 20, 4)
    keys = [figure for figure in figures_of(cached) if figure.name == "keys"]
    assert len(keys) == 4 and {(figure.status, figure.remark != "") for figure in keys} == {("not measured", True)}
    healthy = check_layers(tmp_path / "e", other, 30, 4)
    assert sections_of(healthy)[0].note == "No layer departs."
    assert all(figure.status != "missed" for figure in figures_of(healthy))
