"""The quality report: every figure agrees with its definition on the whole model, and bad input is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from l4export import runtimes
from l4export.cli.quality import _show
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.errors import InputError
from l4export.inspection.dequantized_weights import dequantized_weights
from l4export.model.weight_names import kind_of, layer_of
from l4export.quality.document import figures_of, sections_of
from l4export.quality.measure import QualityReport, measure_quality
from l4export.quantization.policy import Policy, Rule, standard_policy
from l4export.reference.token_scores import log_probabilities
from l4export.reference.transformers_model import HFReference
from l4export.reports.sections import Curve
from workshop import ROOT, Workshop, copy_checkpoint, random_ids

KJV = ROOT / "examples/kjv/model"
ROUGH = Policy((Rule(("*_proj.weight", "*.experts.*"), "int4", 32), Rule(("lm_head.weight",), "int8", 32)), 1)


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    """Two documents, the second shorter; in windows of 50: 50, 50, 30, 40."""
    path = tmp_path / "ids.json"
    path.write_text(json.dumps([random_ids(130, seed=1).tolist(), random_ids(40, seed=2).tolist()]))
    return path


def windows(path: Path, length: int) -> list[np.ndarray]:
    documents = [np.asarray(document) for document in json.loads(path.read_text())]
    return [document[at : at + length] for document in documents for at in range(0, len(document), length)]


def divergence_of(reference: HFReference, other: HFReference, path: Path, length: int) -> float:
    """KL by its definition, whole models, window by window."""
    kl = []
    for window in windows(path, length):
        p, q = (log_probabilities(side.logits(window[None])[0, :-1]) for side in (reference, other))
        kl += (np.exp(p) * (p - q)).sum(axis=1).tolist()
    return float(np.mean(kl))


@pytest.mark.parametrize(
    ("variant", "target"), [("scout-top2", "ort-cpu"), ("maverick", "onnx"), ("mobile", "ort-cpu")]
)
def test_figures_are_those_of_their_definitions(
    workshop: Workshop, tmp_path: Path, ids: Path, variant: str, target: str
) -> None:
    policy = Policy((ROUGH.rules[0],), 1) if variant == "mobile" else ROUGH  # whose head is its embedding
    checkpoint = workshop.checkpoint(variant)
    build(checkpoint, tmp_path / "e", BuildOptions(policy=policy, target=target, max_context=64, kv_layout="static"))
    report = measure_quality(tmp_path / "e", checkpoint, ids, window=50)
    reference, engine = workshop.reference(variant), runtimes.load(tmp_path / "e", threads=1)
    assert report.tokens == 49 + 49 + 29 + 39
    losses = np.zeros(2)
    for window in windows(ids, 50):
        at = np.arange(len(window) - 1), window[1:]
        sides = (reference.logits(window[None])[0], engine.session().append(window)[0])
        losses -= [log_probabilities(side)[at].sum() for side in sides]
    expected = np.exp(losses / report.tokens)
    assert report.reference_perplexity.value == pytest.approx(expected[0], rel=1e-5)
    assert report.perplexity.value == pytest.approx(expected[1], rel=1e-5)
    assert report.perplexity_ratio.value == pytest.approx(expected[1] / expected[0], rel=1e-5)
    values = dict(dequantized_weights(tmp_path / "e"))

    def alone(names: list[str]) -> float:
        other = HFReference(checkpoint)
        other.replace((name, values[name]) for name in names)
        return divergence_of(reference, other, ids, 50)

    assert report.together is not None
    assert report.together.value == pytest.approx(alone(list(values)), rel=1e-3)
    assert report.kl.value == pytest.approx(report.together.value, rel=1e-3)  # float activations: nothing else is lost
    assert [part.name for part in report.layers] == ["0", "1", "2", "3"]
    second = [name for name in values if layer_of(name) == 1]
    assert report.layers[1].kl.value == pytest.approx(alone(second), rel=1e-3)
    for part in report.kinds[:: len(report.kinds) - 1]:
        assert part.kl.value == pytest.approx(alone([n for n in values if kind_of(n) == part.name]), rel=1e-3)
    assert {part.name for part in report.kinds} == {kind_of(name) for name in values}
    worst = [token.kl for token in report.worst]
    assert worst == sorted(worst, reverse=True) and worst[0] == report.kl_max


def test_a_float_engine_loses_nothing(workshop: Workshop, ids: Path) -> None:
    report = measure_quality(workshop.engine_path("scout", "chunked"), workshop.checkpoint("scout"), ids, window=64)
    assert report.kl.value < 1e-9 and report.top1_agreement.value == 1
    assert report.perplexity_ratio.value == pytest.approx(1, abs=1e-5)
    assert report.together is None and report.layers == report.kinds == ()


@pytest.mark.parametrize("dtype", ["int8", "int4", "fp16"])
def test_the_cache_alone_costs_what_an_engine_with_nothing_else_loses(
    workshop: Workshop, ids: Path, dtype: str
) -> None:
    variant = "guard" if dtype == "fp16" else "scout"  # dense: a router's near tie outweighs all that float16 costs
    report = measure_quality(
        workshop.engine_path(variant, "static", 256, dtype), workshop.checkpoint(variant), ids, window=64
    )
    (cache,) = report.kinds
    assert cache.name == "KV cache" and report.layers == ()
    if dtype == "fp16":  # attention computes in float16 too, which costs as much as the cache: 1e-6 either way
        assert 0 < cache.kl.value < 1e-5 and report.kl.value < 1e-5
    else:  # a key on the edge between two codes falls to either side: 5 % of what the cache costs
        assert cache.kl.value == pytest.approx(report.kl.value, rel=0.05)


def test_layers_of_a_slice_have_the_checkpoints_numbers(workshop: Workshop, tmp_path: Path, ids: Path) -> None:
    checkpoint = workshop.checkpoint("maverick")
    build(checkpoint, tmp_path / "e", BuildOptions(policy=ROUGH, layers=(1, 3), max_context=64))
    report = measure_quality(tmp_path / "e", checkpoint, ids, window=64)
    assert [part.name for part in report.layers] == ["1", "2"]
    assert report.together is not None
    assert report.together.value == pytest.approx(report.kl.value, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "tokens are too few"),
        ("1 2 3", "3 tokens are too few"),
        ("9" * 300 + " 5", "outside the vocabulary"),
        (" ".join(["256"] * 200), "token id 256 is outside the vocabulary"),
        ("In the beginning", "no tokenizer.json"),
    ],
)
def test_texts_that_cannot_be_measured_on(workshop: Workshop, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        measure_quality(workshop.engine_path("scout", "static"), workshop.checkpoint("scout"), tmp_path / "t.txt")
    assert str(caught.value).startswith("--text ") and "\n" not in str(caught.value)


def test_other_bad_input(workshop: Workshop, ids: Path, tmp_path: Path) -> None:
    engine, checkpoint = workshop.engine_path("scout", "static"), workshop.checkpoint("scout")
    with pytest.raises(InputError, match="--window 300: this engine takes 2 to 256"):
        measure_quality(engine, checkpoint, ids, window=300)
    with pytest.raises(InputError, match="no such file"):
        measure_quality(engine, checkpoint, tmp_path / "none.txt")
    with pytest.raises(InputError, match="--threshold perplexity: not one of kl"):
        measure_quality(engine, checkpoint, ids, thresholds={"perplexity": 3})
    (tmp_path / "single.json").write_text(str([[token] for token in range(200)]))
    with pytest.raises(InputError, match=r"--text single\.json: no document has two tokens"):
        measure_quality(engine, checkpoint, tmp_path / "single.json")
    with pytest.raises(InputError, match="another model than the engine's"):
        measure_quality(engine, workshop.checkpoint("maverick"), ids)


def test_a_reference_of_no_numbers_judges_nothing(workshop: Workshop, ids: Path, tmp_path: Path) -> None:
    broken = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = 3e38  # a finite number, which overflows in the product
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(InputError, match="reference's logits are not finite \\(window 1\\)"):
        measure_quality(workshop.engine_path("scout", "static"), broken, ids, breakdown=False)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> QualityReport:
    """The report of the trained example, on a text with characters that HTML must escape."""
    work = tmp_path_factory.mktemp("kjv")
    build(KJV, work / "e", BuildOptions(policy=standard_policy("int4"), max_context=256))
    (work / "t.txt").write_text("And he said <b>unto</b> them & the people, Go.\n" * 12)
    return measure_quality(work / "e", KJV, work / "t.txt", thresholds={"kl": 1e-9})


def test_what_a_report_shows(report: QualityReport) -> None:
    layers, kinds, together, along, histogram, worst, facts = sections_of(report)
    assert [len(section.table.rows) for section in (layers, kinds, together)] == [4, len(report.kinds), 2]
    assert layers.table.rows[3][0] == "layer 3, 4.25 bits"
    assert "attention o, 4.25 bits" in [label for label, _, _ in kinds.table.rows]
    assert isinstance(along, Curve) and along.marks == (64.0, 128.0, 192.0)
    assert sum(int(count) for _, count, _ in histogram.table.rows) == report.tokens
    assert len(worst.table.rows) == 10 and "<b>" in "".join(row[2] for row in worst.table.rows)
    assert dict(facts.table.rows)["bits per weight"] == f"{report.facts['bits_per_weight']:.3f}"
    assert not report.passed and "threshold 1e-09" in report.failures[0]
    figures = figures_of(report)
    assert [figure.status for figure in figures if figure.threshold is not None] == ["missed"]
    assert [
        section.title for section in sections_of(dataclasses.replace(report, layers=(), kinds=(), together=None))
    ] == [section.title for section in (along, histogram, worst, facts)]


def test_parts_that_are_not_there_have_no_table(report: QualityReport, capsys: pytest.CaptureFixture[str]) -> None:
    _show(report)
    assert "if only this layer were" in capsys.readouterr().out
    _show(dataclasses.replace(report, layers=()))  # as where the KV cache alone is quantised
    shown = capsys.readouterr().out
    assert "if only this layer were" not in shown and "if only this kind were" in shown


def test_worst_tokens_have_their_text(report: QualityReport) -> None:
    token = report.worst[0]
    assert token.following in "And he said <b>unto</b> them & the people, Go.\n" and len(token.engine) == 3
    assert token.context.startswith(("<|begin_of_text|>", *"And he said <b>unto</b> them & the people, Go.\n "))


def test_command(workshop: Workshop, ids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from l4export.cli import main

    def run(*extra: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["quality", str(engine), "--reference", str(checkpoint), "--text", str(ids), "--window", "50", *extra])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    engine, checkpoint = workshop.engine_path("scout", "static"), workshop.checkpoint("scout")
    assert run("--json", "-o", str(tmp_path / "q.html"), "--threshold", "kl=0.001") == 0
    told = json.loads(capsys.readouterr().out)
    details = told["details"]
    assert told["verdict"] == "passed" and details["tokens"] == 166 and details["kl"]["low"] <= details["kl"]["high"]
    assert (tmp_path / "q.html").read_text().startswith("<!DOCTYPE html>")
    assert run("--no-breakdown", "--threshold", "top1_agreement=2") == 1
    shown = capsys.readouterr()
    assert "perplexity" in shown.out and shown.err.splitlines()[-1].startswith("l4export: ")
    assert run("--threshold", "kl") == 2
