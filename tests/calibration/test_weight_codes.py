"""Builds that calibrate: drop-in tensors, better outputs, the same bytes again, work that is kept, refusals."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from kv_definitions import scales_of
from l4export import runtimes
from l4export.calibration import layer as layer_calibration
from l4export.calibration.text import DEFAULT_TEXT, TextReader
from l4export.calibration.weight_codes import CalibrationPlan
from l4export.checkpoint import open_checkpoint
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.engine.manifest import load_manifest
from l4export.errors import InputError
from l4export.inspection.dequantized_weights import DequantizedWeights, dequantized_weights
from l4export.parity.by_layer import check_layers
from l4export.parity.whole_model import check_parity
from l4export.passes.pack_projections import PackProjections
from l4export.quantization import dequantize
from l4export.quantization.gptq import QuantizedMatrix
from l4export.quantization.policy import Policy, Rule, standard_policy
from l4export.reference.transformers_model import HFReference
from workshop import ROOT, Workshop, copy_checkpoint, random_ids

MATRICES = ("model.layers.*_proj.weight", "model.layers.*.experts.*_proj")


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ids") / "ids.json"
    path.write_text(json.dumps(random_ids((6, 200), seed=9).tolist()))
    return path


def policy(block: int = 16, symmetric: bool = True, kind: str = "int4") -> Policy:
    return Policy((Rule(MATRICES, kind, block, symmetric),), accuracy_level=1)


def first_layer_error(engine: Path, checkpoint: Path) -> float:
    """Behind the first layer: further on, in models without sense, experts that change hide everything else."""
    return check_layers(engine, checkpoint, 100, 2).layers[0].hidden_rms


@pytest.mark.parametrize(
    ("variant", "quantised"),
    [
        ("scout", policy()),
        ("scout", policy(kind="int8")),
        ("maverick", policy(symmetric=False)),
        ("mobile", policy(32, symmetric=False, kind="int8")),
        ("scout-top2", policy()),
    ],
)
def test_calibrated_engines_are_nearer_to_the_checkpoint(
    workshop: Workshop, tmp_path: Path, ids: Path, variant: str, quantised: Policy
) -> None:
    checkpoint = workshop.checkpoint(variant)
    sizes = []
    for name, text in (("plain", None), ("calibrated", ids)):
        manifest = build(checkpoint, tmp_path / name, BuildOptions(max_context=128, policy=quantised, calibrate=text))
        sizes.append(sum(record.bytes for file, record in manifest.files.items() if file.endswith(".data")))
    errors = [first_layer_error(tmp_path / name, checkpoint) for name in ("plain", "calibrated")]
    assert errors[1] < 0.95 * errors[0]
    assert sizes[0] == sizes[1]
    if quantised.rules[0].kind != "int8":  # ONNX Runtime rounds activations before int8 experts at any level
        report = check_parity(tmp_path / "calibrated", checkpoint, 50, 4, dequantized=True)
        assert report.passed, report.failures  # at float level: what was found is what the engine computes with


@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_projections_hold_what_the_calibration_found(
    workshop: Workshop, tmp_path: Path, ids: Path, monkeypatch: pytest.MonkeyPatch, symmetric: bool
) -> None:
    found: dict[str, np.ndarray] = {}

    def keep(plan: CalibrationPlan, name: str, expert: int | None, matrix: QuantizedMatrix) -> None:
        scheme = policy(symmetric=symmetric).rules[0].scheme(name, matrix.scales.shape[1] * 16)
        found[name] = dequantize(matrix.codes, matrix.scales, matrix.zero_points, scheme)
        keep_it(plan, name, expert, matrix)

    def unpacked(_: object, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, modified=False)

    checkpoint, keep_it = workshop.checkpoint("scout"), CalibrationPlan.keep
    options = BuildOptions(max_context=128, policy=policy(symmetric=symmetric), calibrate=ids)
    with monkeypatch.context() as patched:
        patched.setattr(CalibrationPlan, "keep", keep)
        build(checkpoint, tmp_path / "packed", options)
    with monkeypatch.context() as patched:
        patched.setattr(PackProjections, "call", unpacked)
        build(checkpoint, tmp_path / "apart", options)
    stored = [str(n) for n in ir.load(tmp_path / "packed" / "decoder.onnx").graph.initializers]
    assert sum("|" in name for name in stored) >= 4 * 2
    assert not any("|" in str(n) for n in ir.load(tmp_path / "apart" / "decoder.onnx").graph.initializers)
    weights = DequantizedWeights(tmp_path / "packed")
    matrices = {name: values for name, values in found.items() if ".experts." not in name}
    assert len(matrices) == 4 * (4 + 3)
    for name, values in matrices.items():
        np.testing.assert_array_equal(weights.rows(name, slice(None)), values)
        np.testing.assert_array_equal(weights.rows(name, slice(3, 9)), values[3:9])
    logits = [runtimes.load(tmp_path / name).session().append(random_ids(40)) for name in ("packed", "apart")]
    np.testing.assert_array_equal(*logits)


def test_weights_first_and_then_the_caches_scales(workshop: Workshop, tmp_path: Path, ids: Path) -> None:
    """The scales are measured with the calibrated weights; either calibration is recorded under its own name."""
    checkpoint, notices = workshop.checkpoint("scout"), []
    options = BuildOptions(max_context=128, policy=policy(), calibrate=ids)
    both = dataclasses.replace(options, kv_dtype="int8", kv_calibrate=ids)
    build(checkpoint, tmp_path / "weights", options)
    manifest = build(checkpoint, tmp_path / "both", both, on_notice=notices.append)
    assert ["calibrating the KV cache" in line for line in notices] == [False] * 4 + [True]
    assert (
        manifest.options["weights"]["calibration"]["tokens"]
        == manifest.options["decoder"]["kv_calibration"]["tokens"]
        == 1200
    )
    for name, values in dequantized_weights(tmp_path / "weights"):
        np.testing.assert_array_equal(DequantizedWeights(tmp_path / "both").rows(name, slice(None)), values)
    build(checkpoint, tmp_path / "caches", dataclasses.replace(both, calibrate=None))
    found, plain = (scales_of(tmp_path / name) for name in ("both", "caches"))
    assert any((found[name] != plain[name]).any() for name in found)
    build(checkpoint, tmp_path / "weights", dataclasses.replace(both, force=True))
    assert load_manifest(tmp_path / "weights") == manifest


def test_float16(workshop: Workshop, tmp_path: Path, ids: Path) -> None:
    options = BuildOptions(dtype="fp16", max_context=128, policy=standard_policy("int4"), calibrate=ids)
    build(workshop.checkpoint("scout"), tmp_path / "e", options)
    reference = HFReference(workshop.checkpoint("scout"))
    reference.replace(dequantized_weights(tmp_path / "e"))
    expected = reference.logits(random_ids(40)[None])[0]
    got = runtimes.load(tmp_path / "e").session().append(random_ids(40))[0]
    # the median position: a router's near tie may choose another expert
    assert np.median(np.abs(got - expected).max(axis=1)) <= 0.05 * np.abs(expected).max()


def test_a_slice_of_layers(workshop: Workshop, tmp_path: Path, ids: Path) -> None:
    options = BuildOptions(max_context=128, layers=(1, 3), policy=policy(), calibrate=ids)
    build(workshop.checkpoint("maverick"), tmp_path / "e", options)
    report = check_parity(tmp_path / "e", workshop.checkpoint("maverick"), 50, 4, dequantized=True)
    assert report.passed, report.failures


def test_the_same_bytes_again_and_a_report(workshop: Workshop, tmp_path: Path, ids: Path) -> None:
    checkpoint, notices = workshop.checkpoint("scout"), []
    options = BuildOptions(max_context=128, policy=policy(), calibrate=ids)
    first = build(checkpoint, tmp_path / "a", options, on_notice=notices.append)
    again = build(checkpoint, tmp_path / "b", BuildOptions(jobs=1, max_context=128, policy=policy(), calibrate=ids))
    assert first.files == again.files
    assert sum("calibrated in" in line for line in notices) == 4
    assert first.options["weights"]["calibration"]["tokens"] == 1200
    report = json.loads((tmp_path / "a" / "calibration.json").read_text())
    assert len(report["matrices"]) == 4 * (4 + 1 + 3 + 2 * 4)
    assert all(item["error"] < item["plain_error"] for item in report["matrices"])
    experts = [item for item in report["matrices"] if item["name"] == "model.layers.2.feed_forward.experts.down_proj"]
    assert [item["expert"] for item in experts] == [0, 1, 2, 3]
    assert sum(item["tokens"] for item in experts if not item["fallback"]) <= 1200


def test_another_kv_layout_takes_the_calibrated_weights_over(tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text(json.dumps(random_ids(300).tolist()))
    notices: list[str] = []
    for layout in ("static", "static", "concat"):
        options = BuildOptions(
            kv_layout=layout, max_context=128, policy=policy(32), calibrate=tmp_path / "ids.json", force=True
        )
        build(ROOT / "examples/kjv/model", tmp_path / "e", options, on_notice=notices.append)
    assert sum("calibrated in" in line for line in notices) == 4
    assert any("up to date" in line for line in notices)
    assert any("taken over" in line for line in notices)
    assert "calibration.json" in load_manifest(tmp_path / "e").files
    report = check_parity(tmp_path / "e", ROOT / "examples/kjv/model", 70, 4, dequantized=True)
    assert report.passed, report.failures


def test_scales_that_lie_in_the_graph_are_calibrated_anew(workshop: Workshop, tmp_path: Path, ids: Path) -> None:
    """Tiny ones do; their values are not in the data files that could be taken over."""
    for layout in ("static", "concat"):
        options = BuildOptions(kv_layout=layout, max_context=128, policy=policy(), calibrate=ids, force=True)
        build(workshop.checkpoint("scout"), tmp_path / "e", options)
    report = check_parity(tmp_path / "e", workshop.checkpoint("scout"), 50, 4, dequantized=True)
    assert report.passed, report.failures


class TestWorkThatIsKept:
    """A build that is interrupted while it calibrates."""

    @pytest.fixture
    def interrupted(
        self, workshop: Workshop, tmp_path: Path, ids: Path, monkeypatch: pytest.MonkeyPatch
    ) -> tuple[Path, BuildOptions]:
        original = layer_calibration.calibrate_layer

        def until_layer_2(reference, index, *rest):  # type: ignore[no-untyped-def]
            if index == 2:
                raise KeyboardInterrupt
            return original(reference, index, *rest)

        options = BuildOptions(max_context=128, policy=policy(), calibrate=ids)
        with monkeypatch.context() as patch:
            patch.setattr(layer_calibration, "calibrate_layer", until_layer_2)
            with pytest.raises(KeyboardInterrupt):
                build(workshop.checkpoint("scout"), tmp_path / "e", options)
        return tmp_path / ".e.partial" / "calibration", options

    def test_the_next_build_goes_on_and_gives_the_same_bytes(
        self, workshop: Workshop, tmp_path: Path, interrupted: tuple[Path, BuildOptions]
    ) -> None:
        work, options = interrupted
        assert sorted(path.name for path in work.iterdir() if "hidden" in path.name) == ["layer-00001.hidden"]
        notices: list[str] = []
        resumed = build(workshop.checkpoint("scout"), tmp_path / "e", options, on_notice=notices.append)
        assert any("2 layers were already calibrated" in line for line in notices)
        assert sum("calibrated in" in line for line in notices) == 2
        assert resumed.files == build(workshop.checkpoint("scout"), tmp_path / "f", options).files
        assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "f"]

    @pytest.mark.parametrize("name", ["layer-00000.codes", "layer-00001.hidden", "layer-00001.json"])
    def test_what_was_damaged_is_not_gone_on_with(
        self, workshop: Workshop, tmp_path: Path, interrupted: tuple[Path, BuildOptions], name: str
    ) -> None:
        work, options = interrupted
        data = bytearray((work / name).read_bytes())
        data[5] ^= 1
        (work / name).write_bytes(data)
        notices: list[str] = []
        build(workshop.checkpoint("scout"), tmp_path / "e", options, on_notice=notices.append)
        assert sum("calibrated in" in line for line in notices) == 4

    def test_another_text_begins_anew(
        self, workshop: Workshop, tmp_path: Path, interrupted: tuple[Path, BuildOptions]
    ) -> None:
        (tmp_path / "other.json").write_text(json.dumps(random_ids(300, seed=5).tolist()))
        options = BuildOptions(max_context=128, policy=policy(), calibrate=tmp_path / "other.json")
        notices: list[str] = []
        build(workshop.checkpoint("scout"), tmp_path / "e", options, on_notice=notices.append)
        assert sum("calibrated in" in line for line in notices) == 4

    def test_a_build_that_does_not_calibrate_clears_it_away(
        self, workshop: Workshop, tmp_path: Path, interrupted: tuple[Path, BuildOptions]
    ) -> None:
        build(workshop.checkpoint("scout"), tmp_path / "e", BuildOptions(max_context=128))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["e"]


def test_experts_that_few_or_no_tokens_reached_are_named(workshop: Workshop, tmp_path: Path) -> None:
    """A router that always takes expert 1."""
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.1.feed_forward.router.weight"][:] = 0
    save_file(weights, checkpoint / "model.safetensors")
    (tmp_path / "ids.json").write_text(json.dumps(random_ids(300, seed=5).tolist()))
    notices: list[str] = []
    options = BuildOptions(max_context=64, policy=policy(), calibrate=tmp_path / "ids.json")
    build(checkpoint, tmp_path / "e", options, on_notice=notices.append)
    report = json.loads((tmp_path / "e" / "calibration.json").read_text())["matrices"]
    routed = [item for item in report if item["name"] == "model.layers.1.feed_forward.experts.gate_up_proj"]
    fallen = [item["expert"] for item in routed if item["fallback"]]
    assert len(fallen) == 3
    assert {item["tokens"] for item in routed} == {300}  # the one expert's own, and all of them for the others
    assert f"experts {', '.join(map(str, fallen))}: " in next(line for line in notices if "layer 2 of 4" in line)


class TestText:
    def test_a_document_longer_than_a_sequence_is_cut(self) -> None:
        model = ROOT / "examples/kjv/model"
        text = TextReader(model, open_checkpoint(model).config).for_weights(DEFAULT_TEXT)
        assert {len(ids) for ids in text.sequences[:-1]} == {2048}
        assert all(ids[0] == 0 and 0 not in ids[1:] for ids in text.sequences)  # begin of text

    def test_the_default_text_is_not_what_the_example_is_measured_on(self) -> None:
        held_out = (ROOT / "examples/kjv/held_out.txt").read_text()
        lines = [line for line in DEFAULT_TEXT.read_text(encoding="utf-8").splitlines() if len(line) > 30]
        assert len(lines) > 500
        assert not any(line in held_out for line in lines)

    def test_files_of_a_directory_in_order(self, workshop: Workshop, tmp_path: Path) -> None:
        checkpoint = workshop.checkpoint("scout")
        for name, first in (("b.json", 2), ("a.json", 1), ("c.bin", 3)):
            (tmp_path / name).write_text(json.dumps([[first] * 100, [7] * 30]))
        text = TextReader(checkpoint, open_checkpoint(checkpoint).config).for_weights(tmp_path)
        assert [(ids[0], len(ids)) for ids in text.sequences] == [(1, 100), (7, 30), (2, 100), (7, 30)]

    @pytest.mark.parametrize(
        ("name", "content", "word"),
        [
            ("t.json", "[1, 2, 3]", "too few"),
            ("t.json", "[]", "too few"),
            ("t.json", json.dumps([1] * 200 + [256]), "token id 256 is outside the vocabulary"),
            ("t.json", json.dumps([1] * 200 + [-1]), "outside the vocabulary"),
            ("t.json", '{"a": 1}', "must hold token ids"),
            ("t.json", "[1, true]", "must hold token ids"),
            ("t.json", "[[1], 2]", "must hold token ids"),
            ("t.json", "[" * 100000, "not JSON"),
            ("t.txt", "In the beginning", "no tokenizer.json"),
            ("t.txt", b"\xff\xfe", "not UTF-8"),
        ],
    )
    def test_bad_text_is_refused(
        self, workshop: Workshop, tmp_path: Path, name: str, content: str | bytes, word: str
    ) -> None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        checkpoint = workshop.checkpoint("scout")
        with pytest.raises(InputError, match=word):
            build(checkpoint, tmp_path / "e", BuildOptions(policy=policy(), calibrate=tmp_path / name))
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_text_that_is_empty(self, tmp_path: Path) -> None:
        (tmp_path / "t.txt").write_text(" \n")
        model = ROOT / "examples/kjv/model"
        with pytest.raises(InputError, match="0 tokens are too few"):
            TextReader(model, open_checkpoint(model).config).for_weights(tmp_path / "t.txt")
        with pytest.raises(InputError, match="no such file"):
            TextReader(model, open_checkpoint(model).config).for_weights(tmp_path / "nothing")
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match=r"no \.txt or \.json file"):
            TextReader(model, open_checkpoint(model).config).for_weights(tmp_path / "empty")


@pytest.mark.parametrize("quantised", [None, standard_policy("fp8"), Policy((Rule(("lm_head.weight",), "int8"),))])
def test_nothing_to_calibrate_is_refused(workshop: Workshop, ids: Path, quantised: Policy | None) -> None:
    with pytest.raises(InputError, match="no weight of a layer is quantised to integers"):
        plan_build(workshop.checkpoint("scout"), BuildOptions(policy=quantised, calibrate=ids))


def test_a_weight_that_is_not_finite_is_named(workshop: Workshop, tmp_path: Path, ids: Path) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.1.self_attn.o_proj.weight"][2, 3] = np.nan
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.layers\.1\.self_attn\.o_proj\.weight: element \[2, 3\] is nan"):
        build(checkpoint, tmp_path / "e", BuildOptions(policy=policy(), calibrate=ids))
    shutil.rmtree(checkpoint)
    assert list(tmp_path.iterdir()) == []
