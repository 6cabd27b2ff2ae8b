"""What a build writes so that a device can be judged: which layers, what they are fed, and what a CPU gave."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file

from judged_engines import computing, judged_engine
from l4export.checkpoint import sample
from l4export.cli import main
from l4export.compiler import check_graph
from l4export.compiler.check_graph import check_calls, checked_layers
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.engine.check_decoder import check_decoder
from l4export.engine.check_record import CHECK_RECORD, read_record
from l4export.engine.manifest import load_manifest, verify_files
from l4export.errors import CheckFailed, EnvironmentLacks
from l4export.inspection.dequantized_weights import dequantized_weights
from l4export.inspection.facts import EngineFacts, inspect
from l4export.quantization.policy import Policy, Rule
from l4export.reference.transformers_model import HFReference
from l4export.runtimes.onnxruntime.composition_check import check_composition
from l4export.targets import TARGETS
from l4export.weights.placement import INLINE_BYTES
from workshop import Workshop, assert_close, copy_checkpoint, edit_config

FP16 = 5e-3
"""Of two layers in float16, a quarter of what whole engines are allowed; 1.3e-3 was seen."""


@pytest.fixture(scope="module")
def engine(wide_scout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return judged_engine(wide_scout, tmp_path_factory.mktemp("judged") / "e", "int4")


def layers_of(checkpoint: Path, **options: object) -> tuple[int, ...]:
    fixed = {"target": "ort-cuda", "dtype": "fp16", "kv_layout": "chunked", "max_context": 96}
    planned = plan_build(checkpoint, BuildOptions(**{**fixed, **options}))  # type: ignore[arg-type]
    return checked_layers(planned.model.graph, planned.config)


# Which layers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "layers"), [("scout", (0, 3)), ("maverick", (0, 1, 3)), ("guard", (0,)), ("mobile", (0,))]
)
def test_the_first_layer_of_every_kind(workshop: Workshop, variant: str, layers: tuple[int, ...]) -> None:
    assert layers_of(workshop.checkpoint(variant)) == layers


def test_a_layer_that_is_quantised_in_another_way_is_of_another_kind(workshop: Workshop) -> None:
    policy = Policy((Rule(("model.layers.2.self_attn.*_proj.weight",), "int4"),))
    assert layers_of(workshop.checkpoint("scout"), policy=policy) == (0, 2, 3)


def test_layers_of_a_slice_are_numbered_as_the_engine_numbers_them(workshop: Workshop) -> None:
    assert layers_of(workshop.checkpoint("scout"), layers=(2, 4)) == (0, 1)


@pytest.mark.parametrize(
    ("context", "cut", "expected"),
    [
        (96, 16, (0, (32, 8, *[1] * 8))),
        (131072, 8192, (8176, (32, 8, *[1] * 8))),  # a chunk ends within the first call
        (8200, 8192, (8152, (32, 8, *[1] * 8))),  # the context ends first: within the single tokens
        (8192, 8192, (0, (32, 8, *[1] * 8))),
        (96, None, (0, (32, 8, *[1] * 8))),
        (12, 8, (0, (8, 2, 1, 1))),
        (5, None, (0, (5,))),
        (1, None, (0, (1,))),
    ],
)
def test_calls(context: int, cut: int | None, expected: tuple[int, tuple[int, ...]]) -> None:
    assert check_calls(context, cut) == expected


# What is written -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quant", ["none", "int4"])
@pytest.mark.parametrize("variant", ["scout", "maverick"])
def test_the_record_is_what_pytorch_computes_with_these_layers(
    wide: dict[str, Path], tmp_path: Path, variant: str, quant: str
) -> None:
    path = judged_engine(wide[variant], tmp_path / "e", quant)
    manifest, reference = load_manifest(path), HFReference(wide[variant])
    check = manifest.check
    assert check is not None
    record = read_record(path / CHECK_RECORD, check, check_decoder(manifest, check))
    if quant != "none":
        reference.replace(dequantized_weights(path))
    for number, layer in enumerate(reference.model.model.layers):
        if number not in check.layers:
            layer.forward = lambda hidden, *_, **__: hidden
    logits = reference.logits(record.ids[None].astype(np.int64))[0]
    kept = [*range(32), 39, *range(40, 48)]
    assert_close(record.sampled, logits[kept][:, record.columns], FP16)
    assert_close(record.whole, logits[[31, 47]], FP16)


@pytest.fixture(scope="module")
def wide(wide_scout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("wide") / "maverick"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sample._SHAPES["tiny"], "intermediate_size", 64)
        sample.write_sample(path, "maverick", "tiny", seed=5)
    return {"scout": wide_scout, "maverick": path}


def test_a_check_far_from_the_first_position(workshop: Workshop, tmp_path: Path) -> None:
    """Chunks that are longer than a check: it begins shortly before one ends."""
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    edit_config(checkpoint, attention_chunk_size=64)
    path = judged_engine(checkpoint, tmp_path / "e", max_context=200)
    check = load_manifest(path).check
    assert check is not None and check.start == 48
    assert check_composition(path, load_manifest(path), computing()(path)) < 1e-3


def test_no_byte_of_a_weight_is_written_twice(engine: Path) -> None:
    graphs = [ir.load(engine / name).graph for name in ("decoder.onnx", "check.onnx")]
    whole, part = ({name: value.const_value for name, value in graph.initializers.items()} for graph in graphs)
    shared = {name: tensor for name, tensor in part.items() if isinstance(tensor, ir.ExternalTensor)}
    assert {"model.embed_tokens.weight.codes", "model.layers.3.self_attn.o_proj.weight.codes"} <= set(shared)
    assert all(tensor.nbytes <= INLINE_BYTES for name, tensor in part.items() if tensor and name not in shared)
    for name, tensor in shared.items():
        other = whole[name]
        assert isinstance(other, ir.ExternalTensor)
        assert (tensor.location, tensor.offset, tensor.length) == (other.location, other.offset, other.length)
    data = {name for name in load_manifest(engine).files if name.endswith(".data")}
    assert {str(tensor.location) for tensor in shared.values()} <= data


def test_no_token_is_near_a_tie(
    engine: Path, monkeypatch: pytest.MonkeyPatch, wide_scout: Path, tmp_path: Path
) -> None:
    """Or a provider that adds up in another order might choose another expert."""
    seen: list[int] = []
    near_ties = check_graph._near_ties

    def counted(logits: np.ndarray, chosen: int) -> np.ndarray:
        near = near_ties(logits, chosen)
        seen.append(int(near.sum()))
        return near

    monkeypatch.setattr(check_graph, "_near_ties", counted)
    judged_engine(wide_scout, tmp_path / "e", "int4")
    assert sum(seen[:2]) > 0 == sum(seen[-2:]) and len(seen) // 2 < check_graph._ROUNDS
    near = near_ties(np.asarray([[3, 2.95, -5, 0], [0, 3, 2, 2.95]], np.float32), 1)
    assert near.tolist() == [True, True]
    assert near_ties(np.asarray([[3, 2.95, -5, 0], [0, 3, 2, 2.95]], np.float32), 2).tolist() == [False, False]
    assert not near_ties(np.zeros((3, 4), np.float32), 1).any() and not near_ties(np.ones((3, 2), np.float32), 2).any()


def test_the_files_are_the_engines(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = inspect(engine)
    assert isinstance(facts, EngineFacts) and facts.check == {"check.onnx": "layers 0, 3"}
    assert set(facts.files) >= {"check.onnx", CHECK_RECORD}
    with pytest.raises(SystemExit):
        main(["inspect", str(engine)])
    assert "check.onnx  layers 0, 3" in capsys.readouterr().out
    verify_files(engine)
    for name in ("check.onnx", CHECK_RECORD):
        data = (engine / name).read_bytes()
        (engine / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(CheckFailed, match=f"{name} has been changed"):
            verify_files(engine)
        (engine / name).write_bytes(data)


def test_engines_of_other_targets_have_none(workshop: Workshop) -> None:
    manifest = load_manifest(workshop.engine_path("scout", "static"))
    assert manifest.check is None and [*manifest.graphs] == ["decoder"]
    assert [name for name, target in TARGETS.items() if target.is_judged] == ["ort-cuda"]


# Building ------------------------------------------------------------------------------------------------------------


def test_a_build_again_writes_nothing_or_the_same(wide_scout: Path, engine: Path, tmp_path: Path) -> None:
    """The record is the one file that may differ, from one version of onnxruntime to another."""
    first = judged_engine(wide_scout, tmp_path / "e", "int4")
    stamps = {file.name: file.stat().st_mtime_ns for file in first.iterdir()}
    judged_engine(wide_scout, first, "int4", force=True)
    assert {file.name: file.stat().st_mtime_ns for file in first.iterdir()} == stamps
    for name in load_manifest(engine).files:
        if name != CHECK_RECORD:
            assert (first / name).read_bytes() == (engine / name).read_bytes()
    for name, array in load_file(first / CHECK_RECORD).items():
        assert_close(array, load_file(engine / CHECK_RECORD)[name], 1e-3)


def test_weights_that_are_taken_over_are_checked_anew(wide_scout: Path, tmp_path: Path) -> None:
    path = judged_engine(wide_scout, tmp_path / "e", max_context=96)
    inode = (path / "decoder-00001-of-00001.data").stat().st_ino
    judged_engine(wide_scout, path, max_context=80, force=True)
    assert (path / "decoder-00001-of-00001.data").stat().st_ino == inode
    check = load_manifest(path).check
    assert check is not None and check_composition(path, load_manifest(path), computing()(path)) < 1e-3


def test_without_onnxruntime_nothing_is_written(
    wide_scout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EnvironmentLacks, match=r"its build needs onnxruntime: pip install 'l4export\[cpu\]'"):
        judged_engine(wide_scout, tmp_path / "e")
    assert list(tmp_path.iterdir()) == []


class Renamed(ir.passes.InPlacePass):
    """Stands for passes to forms of a device: other names, and one weight in the graph that a CPU runs is not there."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in model.graph:
            node.name = f"{node.name}/on-device"
        return ir.passes.PassResult(model, modified=True)


def test_what_a_cpu_runs_may_be_another_graph(
    wide_scout: Path, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are found in the data files by what they are made of."""
    special = dataclasses.replace(TARGETS["ort-cuda"], specialise=lambda _: [Renamed()])
    monkeypatch.setitem(TARGETS, "ort-cuda", special)  # type: ignore[arg-type]
    path = judged_engine(wide_scout, tmp_path / "e", "int4")
    assert all(str(node.name).endswith("/on-device") for node in ir.load(path / "check.onnx").graph)
    assert json.loads((path / "manifest.json").read_text())["passes"][-1] != "remove_unused"
    for name, array in load_file(path / CHECK_RECORD).items():
        assert_close(array, load_file(engine / CHECK_RECORD)[name], 1e-3)
