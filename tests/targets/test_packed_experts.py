"""Experts of `--target ort-cuda` in the order of CUDA's kernel: their bytes, and all that opens them on a CPU."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from mixed_gemm_definition import as_bytes, packed_order

from l4export import runtimes
from l4export.benchmark.measure import bench
from l4export.checkpoint import sample
from l4export.checkpoint.sample import write_sample
from l4export.compiler.build import build
from l4export.compiler.directory import OutputDirectory
from l4export.compiler.options import BuildOptions
from l4export.engine.manifest import DECODER, UNPACKED, PackedWeight, load_manifest
from l4export.errors import InputError, L4Error
from l4export.inspection.dequantized_weights import DequantizedWeights, dequantized_weights
from l4export.inspection.facts import inspect
from l4export.inspection.graph_file import load_graph
from l4export.inspection.taps import tap_engine
from l4export.inspection.weight_bytes import weight_bytes
from l4export.parity.by_layer import check_layers
from l4export.parity.whole_model import check_parity
from l4export.quality.measure import measure_quality
from l4export.quantization.policy import standard_policy
from l4export.runtimes.onnxruntime.portable import unpacked
from l4export.targets import TARGETS
from workshop import ROOT, random_ids

CASES = {
    "scout-int4": ("scout", "int4", "chunked", 96),
    "scout-int8": ("scout", "int8", "chunked", 96),
    "scout-static": ("scout", "int4", "static", 16),
    "maverick-int4": ("maverick", "int4", "chunked", 96),
    "maverick-int8": ("maverick", "int8", "static", 16),
}
Pair = tuple[Path, Path]


def options(quant: str = "int4", layout: str = "chunked", context: int = 96, **changes: Any) -> BuildOptions:
    fixed: dict[str, Any] = {"target": "ort-cuda", "dtype": "fp16", "kv_layout": layout, "max_context": context}
    return BuildOptions(**{**fixed, "policy": standard_policy(quant), **changes})


@contextmanager
def raw_experts() -> Iterator[None]:
    """Builds of engines in the form that a CPU can run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TARGETS, "ort-cuda", dataclasses.replace(TARGETS["ort-cuda"], specialise=lambda _: []))
        yield


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny checkpoints whose experts are as wide as a block that QMoE takes on CUDA."""
    made: dict[str, Path] = {}

    def make(variant: str) -> Path:
        if variant not in made:
            made[variant] = tmp_path_factory.mktemp("wide") / variant
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(sample._SHAPES["tiny"], "intermediate_size", 64)
                write_sample(made[variant], variant, "tiny", seed=5)
        return made[variant]

    return make


@pytest.fixture(scope="module")
def engines(wide: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """The engine of a case, and the same with its experts as the schema has them."""
    made: dict[str, Pair] = {}

    def make(case: str) -> Pair:
        if case not in made:
            variant, quant, layout, context = CASES[case]
            directory = tmp_path_factory.mktemp(case)
            made[case] = directory / "packed", directory / "raw"
            build(wide(variant), made[case][0], options(quant, layout, context))
            with raw_experts():
                build(wide(variant), made[case][1], options(quant, layout, context))
        return made[case]

    return make


def stored(engine: Path, weight: PackedWeight) -> np.ndarray:
    """The bytes of a weight in its data file, in the weight's shape."""
    return np.fromfile(engine / weight.file, np.uint8, int(np.prod(weight.shape)), offset=weight.offset).reshape(
        weight.shape
    )


# Bytes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["scout-int4", "maverick-int8"])
def test_only_codes_of_experts_lie_in_another_order(engines: Callable[[str], Pair], case: str) -> None:
    packed, raw = engines(case)
    weights = load_manifest(packed).packed_weights
    (name,) = {weight.file for weight in weights}
    ours, theirs = (np.fromfile(engine / name, np.uint8) for engine in (packed, raw))
    assert len(weights) == 2 * len(load_manifest(packed).model.moe_layers)
    for weight in weights:
        codes = stored(raw, weight)
        plain = codes if weight.bits == 8 else np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:2], -1)
        expected = [as_bytes(packed_order(expert.astype(np.int64), weight.bits), weight.bits) for expert in plain]
        np.testing.assert_array_equal(stored(packed, weight).reshape(len(codes), -1), expected)
        np.testing.assert_array_equal(unpacked(packed, weight), codes)
        np.testing.assert_array_equal(unpacked(packed, weight, slice(1, 3)), codes[1:3])
        where = slice(weight.offset, weight.offset + codes.nbytes)
        assert (ours[where] != theirs[where]).any()
        ours[where] = theirs[where]
    np.testing.assert_array_equal(ours, theirs)


def test_the_bytes_do_not_depend_on_how_they_are_cut(wide: Callable[[str], Path], tmp_path: Path) -> None:
    """Emission in blocks of a few rows, on several workers, and from the same weights for another graph."""
    first = build(wide("scout"), tmp_path / "a", options())
    other = build(wide("scout"), tmp_path / "b", options(memory_budget=200_000, jobs=3))
    assert first.files == other.files
    told: list[str] = []
    again = build(wide("scout"), tmp_path / "b", options(context=64, force=True), on_notice=told.append)
    assert any("the weights have not changed" in line for line in told)
    data = [name for name in first.files if name.endswith(".data")]
    assert [again.files[name] for name in data] == [first.files[name] for name in data]
    assert again.packed_weights == first.packed_weights


@pytest.mark.slow
def test_codes_of_a_calibration_are_packed_too(wide: Callable[[str], Path], tmp_path: Path) -> None:
    text = tmp_path / "ids.json"
    text.write_text(json.dumps([random_ids(128).tolist()]))
    calibrated = options(calibrate=text, layers=(0, 1))
    build(wide("scout"), tmp_path / "packed", calibrated)
    with raw_experts():
        build(wide("scout"), tmp_path / "raw", calibrated)
    for weight in load_manifest(tmp_path / "packed").packed_weights:
        np.testing.assert_array_equal(unpacked(tmp_path / "packed", weight), stored(tmp_path / "raw", weight))


# Numbers on a CPU ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_cpu_computes_what_it_does_with_raw_experts(engines: Callable[[str], Pair], case: str) -> None:
    """To the bit: the same graph, the same kernels, and weights that are unpacked."""
    packed, raw = engines(case)
    ids = random_ids(min(85, CASES[case][3]))
    sessions = [runtimes.load(engine, threads=1, provider="cpu").session() for engine in (packed, raw)]
    for piece in (ids[:10], ids[10:13], ids[13:14], ids[14:]):
        np.testing.assert_array_equal(*(session.append(piece) for session in sessions))


def test_reports_read_the_weights_that_are_computed_with(engines: Callable[[str], Pair]) -> None:
    packed, raw = engines("scout-int4")
    for (name, values), (other, expected) in zip(dequantized_weights(packed), dequantized_weights(raw), strict=True):
        assert name == other
        np.testing.assert_array_equal(values, expected)
    experts = "model.layers.0.feed_forward.experts.down_proj"
    one = DequantizedWeights(packed).rows(experts, slice(2, 3))
    np.testing.assert_array_equal(one, DequantizedWeights(raw).rows(experts, slice(2, 3)))
    assert one is not None and one.shape[0] == 1
    model = load_manifest(raw).model
    assert weight_bytes(load_graph(packed), model) == weight_bytes(load_graph(raw), model)
    assert inspect(packed).to_dict()["bits_per_weight"] == inspect(raw).to_dict()["bits_per_weight"]


def test_taps_are_of_the_portable_graph(engines: Callable[[str], Pair]) -> None:
    packed, raw = (tap_engine(e, load_manifest(e), [random_ids(20)[:16]]) for e in engines("scout-int4"))
    np.testing.assert_array_equal(packed.logits, raw.logits)
    for ours, theirs in zip(packed.hidden, raw.hidden, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# What must not happen ------------------------------------------------------------------------------------------------


def test_the_cpu_provider_ignores_the_order(engines: Callable[[str], Pair]) -> None:
    """The reason for all of this: when this test fails, the CPU may have learnt to read packed weights."""
    engine, _ = engines("maverick-int8")  # without a norm of queries and keys, for which it has no kernel
    right = runtimes.load(engine, threads=1, provider="cpu")
    ids = random_ids(16)
    expected = right.session().append(ids)
    right.inference = ort.InferenceSession(engine / f"{DECODER}.onnx", providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]
    assert np.abs(right.session().append(ids) - expected).max() > 0.1 * np.abs(expected).max()


def test_nobody_opens_the_portable_graph_with_packed_bytes(engines: Callable[[str], Pair]) -> None:
    engine, _ = engines("scout-int4")
    assert not (engine / UNPACKED).exists()
    with pytest.raises(Exception, match=f"External data path does not exist: .*{UNPACKED}"):
        ort.InferenceSession(engine / "portable.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "entry",
    [
        lambda engine, _: runtimes.load(engine),
        lambda engine, _: bench(engine, 4, 4, 1),
        lambda engine, checkpoint: check_parity(engine, checkpoint, 4, 2),
        lambda engine, checkpoint: measure_quality(engine, checkpoint, ROOT / "README.md", 96),
        lambda engine, checkpoint: check_layers(engine, checkpoint, 4, 2),
    ],
)
def test_what_does_not_unpack_refuses(
    wide: Callable[[str], Path], engines: Callable[[str], Pair], entry: Callable[[Path, Path], object]
) -> None:
    """Run and generation, bench, parity without --provider cpu, quality, parity --stream."""
    with pytest.raises(L4Error, match=r"an ort-cuda engine runs on an NVIDIA GPU|is for ort-cuda: build one with"):
        entry(engines("scout-int4")[0], wide("scout"))


def test_experts_that_have_no_such_order_stay_as_they_are(wide: Callable[[str], Path], tmp_path: Path) -> None:
    """Float ones, and those of a model without any."""
    for variant, quant in (("scout", "none"), ("guard", "int4")):
        manifest = build(wide(variant), tmp_path / variant, options(quant))
        assert manifest.packed_weights == () and manifest.requires == ()
        runtimes.load(tmp_path / variant, provider="cpu").session().append([1, 2, 3])


# Damaged engines -----------------------------------------------------------------------------------------------------


def test_a_build_that_was_killed_before_its_end_is_continued(
    wide: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The portable graph is written already, and no manifest tells of it."""
    with monkeypatch.context() as patch:
        patch.setattr(OutputDirectory, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(wide("scout"), tmp_path / "e", options())
    assert (tmp_path / ".e.partial/portable.onnx").exists()
    build(wide("scout"), tmp_path / "e", options())
    assert not (tmp_path / ".e.partial").exists()


def test_a_manifest_that_does_not_tell_of_a_packed_weight(engines: Callable[[str], Pair], tmp_path: Path) -> None:
    shutil.copytree(engines("scout-int4")[0], engine := tmp_path / "e")
    raw = json.loads((engine / "manifest.json").read_text())
    raw["packed_weights"][0]["name"] = "another"
    (engine / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="lies in 'unpacked-weights', which is no file of the engine"):
        load_graph(engine)
    with pytest.raises(InputError, match="cannot load it"):
        runtimes.load(engine, provider="cpu")
