"""`--quant auto`: damages that are what they are called, the best choice for them, and budgets that are kept."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4export.calibration import text as calibration_text
from l4export.calibration.text import DEFAULT_TEXT
from l4export.compiler import auto_policy
from l4export.compiler.auto_policy import PolicyChooser, WeightChoice
from l4export.compiler.bit_allocation import allocate, policy_of, weight_groups
from l4export.compiler.build import build
from l4export.compiler.inputs import open_inputs
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.engine.manifest import load_manifest
from l4export.errors import InputError
from l4export.inspection.dequantized_weights import dequantized_weights
from l4export.inspection.graph_file import load_graph
from l4export.inspection.weight_bytes import bits_per_weight, weight_bytes
from l4export.model.tensors import tensors
from l4export.model.weight_names import kind_of
from l4export.quality.measure import measure_quality
from l4export.quantization.policy import Policy, Rule, load_policy
from l4export.reference.token_scores import log_probabilities
from l4export.reference.transformers_model import HFReference
from workshop import ROOT, Workshop, random_ids

KJV = ROOT / "examples/kjv/model"


def chooser_for(checkpoint: Path, options: BuildOptions) -> PolicyChooser:
    """What a build with a budget makes of its inputs."""
    inputs = open_inputs(checkpoint, dataclasses.replace(options, bits_per_weight=5.0))
    return PolicyChooser(inputs, options.layers, WeightChoice.of_engine(options))


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(random_ids(140, seed=5).tolist()))
    return path


groups = st.lists(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0, 1)), min_size=1, max_size=4), min_size=1, max_size=4
)


@given(groups, st.integers(0, 100))
@settings(max_examples=200, deadline=None)
def test_the_choice_is_the_best_that_fits(table: list[list[tuple[int, float]]], more: int) -> None:
    sizes = [[size for size, _ in row] for row in table]
    damage = [[cost for _, cost in row] for row in table]
    budget = sum(map(min, sizes)) + more
    chosen = allocate(sizes, damage, budget)
    assert sum(row[at] for row, at in zip(sizes, chosen, strict=True)) <= budget
    every = itertools.product(*(range(len(row)) for row in table))
    fits = [c for c in every if sum(row[at] for row, at in zip(sizes, c, strict=True)) <= budget]
    best = min(sum(row[at] for row, at in zip(damage, c, strict=True)) for c in fits)
    assert sum(row[at] for row, at in zip(damage, chosen, strict=True)) == pytest.approx(best)


def test_large_budgets_are_counted_in_steps_and_kept() -> None:
    rng = np.random.default_rng(0)
    sizes = np.sort(rng.integers(10**9, 10**11, (300, 6)), axis=1).tolist()
    damage = np.sort(rng.random((300, 6)), axis=1)[:, ::-1].tolist()
    budget = sum(row[2] for row in sizes)
    chosen = allocate(sizes, damage, budget)
    assert 0.95 * budget < sum(row[at] for row, at in zip(sizes, chosen, strict=True)) <= budget
    assert sum(row[at] for row, at in zip(damage, chosen, strict=True)) < sum(row[2] for row in damage)
    with pytest.raises(ValueError, match="11 bytes are 1 too few"):
        allocate([[5], [7]], [[0.0], [0.0]], 11)


@pytest.mark.parametrize("variant", ["scout", "maverick", "guard", "mobile"])
@pytest.mark.parametrize(
    ("target", "dtype"), [("ort-cpu", "fp32"), ("cpu", "fp32"), ("onnx", "fp32"), ("ort-cpu", "fp16")]
)
def test_groups_hold_every_matrix_and_know_their_bytes(
    workshop: Workshop, variant: str, target: str, dtype: str
) -> None:
    options = BuildOptions(target=target, dtype=dtype, max_context=64)
    config = plan_build(workshop.checkpoint(variant), options).config
    found = weight_groups(config, "float16" if dtype == "fp16" or target == "cpu" else "float32", target == "onnx")
    names = [name for group in found for name in group.shapes]
    assert len(names) == len(set(names))
    assert {n for n in tensors(config) if kind_of(n) not in ("router", "norm")} == set(names)
    for at in (0, -1):
        schemes = [group.choices[at] for group in found]
        planned = plan_build(
            workshop.checkpoint(variant), dataclasses.replace(options, policy=policy_of(found, schemes))
        )
        stored = weight_bytes(planned.model, config)
        for group, scheme in zip(found, schemes, strict=True):
            assert sum(stored[name] for name in group.shapes) == pytest.approx(group.nbytes(scheme), abs=1e-6)


@pytest.mark.parametrize("variant", ["maverick-top2", "mobile"])
def test_damages_are_those_of_their_definition(
    workshop: Workshop, tmp_path: Path, ids: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    if variant == "mobile":  # seven choices at once, not all of them
        monkeypatch.setattr(auto_policy, "_STREAMS_BYTES", 7 * 4 * 140 * 64)
    checkpoint = workshop.checkpoint(variant)
    auto = chooser_for(checkpoint, BuildOptions(calibrate=ids, max_context=256)).choose(6.5)
    tokens = np.asarray(json.loads(ids.read_text()))[None]
    expected = log_probabilities(workshop.reference(variant).logits(tokens)[0, :-1])

    def damage(policy: Policy, name: str) -> float:
        build(checkpoint, tmp_path / name, BuildOptions(policy=policy, max_context=256))
        other = HFReference(checkpoint)
        other.replace(dequantized_weights(tmp_path / name))
        got = log_probabilities(other.logits(tokens)[0, :-1])
        return float((np.exp(expected) * (expected - got)).sum(axis=1).mean())

    for at in (0, len(auto.groups) // 2, -1):
        group, scheme, kl = auto.groups[at]
        policy = Policy((Rule(tuple(group.shapes), scheme.kind, scheme.block_size),))
        assert kl == pytest.approx(damage(policy, f"e{at}"), rel=1e-3, abs=1e-9)
    assert auto.predicted_kl == pytest.approx(sum(kl for _, _, kl in auto.groups))
    assert auto.measured_kl == pytest.approx(damage(auto.policy, "all"), rel=1e-3)


@pytest.mark.parametrize(
    ("variant", "bits", "options"),
    [
        ("scout", 5.5, BuildOptions()),
        ("maverick", 7.25, BuildOptions(target="onnx")),
        ("guard", 5.0, BuildOptions(dtype="fp16")),
        ("maverick", 6.0, BuildOptions(layers=(1, 3), kv_layout="chunked")),
    ],
)
def test_budgets_are_kept_and_recorded(
    workshop: Workshop,
    tmp_path: Path,
    ids: Path,
    monkeypatch: pytest.MonkeyPatch,
    variant: str,
    bits: float,
    options: BuildOptions,
) -> None:
    monkeypatch.setattr(calibration_text, "_AUTO_WINDOWS", 1)
    options = dataclasses.replace(options, max_context=256)
    text = ids if options.target == "ort-cpu" else None  # without one, seeded random ids: these have no tokenizer
    auto = chooser_for(workshop.checkpoint(variant), dataclasses.replace(options, calibrate=text)).choose(bits)
    build(workshop.checkpoint(variant), tmp_path / "e", dataclasses.replace(options, policy=auto.policy))
    manifest = load_manifest(tmp_path / "e")
    told = manifest.options["weights"]["auto"]
    reached = bits_per_weight(load_graph(tmp_path / "e"), manifest.model)
    assert bits - 1 < reached <= bits == told["budget"]
    assert told["bits_per_weight"] == pytest.approx(reached, abs=1e-4)
    assert sum(group["kl"] for group in told["groups"]) == pytest.approx(told["predicted_kl"], rel=1e-2)
    if text and options.dtype == "fp32":
        report = measure_quality(tmp_path / "e", workshop.checkpoint(variant), ids, window=256)
        assert report.together is not None
        assert report.together.value == pytest.approx(told["measured_kl"], rel=1e-3)


def test_codes_may_be_calibrated_after_the_choice(
    workshop: Workshop, tmp_path: Path, ids: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from l4export.cli import main

    arguments = [str(workshop.checkpoint("scout")), "-o", str(tmp_path / "e"), "--max-context", "64", "--json"]
    choice = ["--quant", "auto", "--bits-per-weight", "6", "--calibrate", str(ids)]
    choice += ["--write-policy", str(tmp_path / "p.toml")]
    with pytest.raises(SystemExit) as ended:
        main(["build", *arguments, *choice])
    shown = capsys.readouterr()
    assert ended.value.code == 0, shown.err
    json.loads(shown.out)
    assert "bits per weight, KL" in shown.err
    options = load_manifest(tmp_path / "e").options["weights"]
    assert options["calibration"]["sha256"] == options["auto"]["text"]["sha256"]
    assert load_policy(tmp_path / "p.toml").to_dict() == options["policy"]
    assert {rule["kind"] for rule in options["policy"]["rules"]} <= {"int4", "int8"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quant", "auto", "--bits-per-weight", "4"], "for this model the schemes reach"),
        (["--quant", "auto", "--bits-per-weight", "12"], "for this model the schemes reach"),
        (["--quant", "auto", "--bits-per-weight", "nan"], "for this model the schemes reach"),
        (["--quant", "auto"], "--quant auto and --bits-per-weight go together"),
        (["--quant", "int4", "--bits-per-weight", "5"], "--quant auto and --bits-per-weight go together"),
        (["--quant", "auto", "--bits-per-weight", "5", "--block-size", "32"], "leave --block-size, --fit-scales"),
        (["--quant", "auto", "--bits-per-weight", "5", "--calibrate", "nowhere"], "no such file"),
        (["--quant", "auto", "--bits-per-weight", "5", "--dtype", "bf16"], "--dtype bf16"),
    ],
)
def test_bad_budgets_are_one_line(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    from l4export.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["build", str(workshop.checkpoint("scout")), "-o", str(tmp_path / "e"), *arguments])
    shown = capsys.readouterr()
    assert ended.value.code == 2 and message in shown.err and len(shown.err.splitlines()) == 1
    assert not (tmp_path / "e").exists()


def test_budgets_named_in_the_refusal_can_be_had(workshop: Workshop, ids: Path) -> None:
    chooser = chooser_for(workshop.checkpoint("guard"), BuildOptions(calibrate=ids, max_context=64))
    with pytest.raises(InputError) as caught:
        chooser.choose(1)
    words = str(caught.value).split()
    low, high = (float(words[words.index("to") + offset].rstrip(",")) for offset in (-1, 1))
    assert {scheme.kind for _, scheme, _ in chooser.choose(low).groups} == {"int4"}
    assert chooser.choose(high).measured_kl < chooser.choose(low).measured_kl


@pytest.mark.slow
def test_auto_beats_one_scheme_for_all_on_text_it_has_not_seen(tmp_path: Path) -> None:
    uniform = Policy((Rule(("*_proj.weight", "*.experts.*", "lm_head.weight", "*embed*"), "int4", 32),))
    build(KJV, tmp_path / "uniform", BuildOptions(policy=uniform, max_context=1024))
    bits = bits_per_weight(load_graph(tmp_path / "uniform"), load_manifest(tmp_path / "uniform").model)
    auto = chooser_for(KJV, BuildOptions(calibrate=DEFAULT_TEXT)).choose(bits)
    build(KJV, tmp_path / "auto", BuildOptions(policy=auto.policy, max_context=1024))
    held_out = KJV.parent / "held_out.txt"
    kl = [measure_quality(tmp_path / name, KJV, held_out, breakdown=False).kl for name in ("uniform", "auto")]
    assert kl[1].high < kl[0].low
