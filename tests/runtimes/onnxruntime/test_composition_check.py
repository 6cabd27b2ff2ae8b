"""A provider is judged by an engine's check graph: here the CPU's in CUDA's place, right and wrong in every way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from safetensors.numpy import load_file, save_file

import cuda_stand_ins as stand_ins
from cuda_stand_ins import Driver
from judged_engines import CPU, CUDA, Change, ExecutorOf, computing, judged_engine, said_to_be_on_cuda
from l4export import runtimes
from l4export.compiler import check_graph
from l4export.engine.check_record import CHECK_RECORD
from l4export.engine.manifest import MANIFEST, load_manifest
from l4export.errors import EnvironmentLacks, InputError
from l4export.runtimes.onnxruntime import composition_check, verdicts
from l4export.runtimes.onnxruntime.composition_check import check_composition
from l4export.storage.file_records import file_record
from workshop import copy_checkpoint


@pytest.fixture(scope="module")
def judged(wide_scout: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(quant: str) -> Path:
        if quant not in made:
            made[quant] = judged_engine(wide_scout, tmp_path_factory.mktemp("judged") / quant, quant)
        return made[quant]

    return make


def check(path: Path, executor: ExecutorOf | None = None) -> float:
    return check_composition(path, load_manifest(path), (executor or computing())(path))


# Numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quant", ["none", "int4", "int8"])
def test_a_provider_that_computes_the_same_passes(judged: Callable[[str], Path], quant: str) -> None:
    """Through the caches and bindings of a device; the record was made through those of the host."""
    assert check(judged(quant)) < 1e-3  # the same kernels, with another number of threads


def of(operator: str, change: Callable[[ir.Node], None]) -> Change:
    """A change of every node of an operator."""

    def apply(graph: ir.Graph) -> None:
        nodes = [node for node in graph if node.op_type == operator]
        assert nodes
        for node in nodes:
            change(node)

    return apply


def attribute(name: str, value: float) -> Callable[[ir.Node], None]:
    kind = ir.AttrInt64 if isinstance(value, int) else ir.AttrFloat32
    return lambda node: node.attributes.__setitem__(name, kind(name, value))  # type: ignore[operator]


def weight(index: int, reorder: Callable[[np.ndarray], np.ndarray]) -> Callable[[ir.Node], None]:
    def change(node: ir.Node) -> None:
        value = node.inputs[index]
        assert value is not None and value.const_value is not None
        value.const_value = ir.tensor(reorder(value.const_value.numpy()).copy(), name=value.name)

    return change


def constant_input(graph: ir.Graph, value: ir.Value, array: np.ndarray, user: ir.Node | None = None) -> None:
    """Let all nodes, or one, read an array where they read a value."""
    name = f"{value.name}_{user.name if user else ''}_constant"
    other = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    other.type, other.shape = ir.TensorType(other.const_value.dtype), ir.Shape(array.shape)  # type: ignore[union-attr]
    graph.register_initializer(other)
    for use in list(value.uses()):
        if user in (None, use.node):
            use.node.replace_input_with(use.idx, other)


def defaults_in_place_of_inputs(graph: ir.Graph) -> None:
    """What CUDA made of initializers that may be overridden."""
    for value in graph.inputs:
        if value.name in {"mask_start", "cache_start"}:
            constant_input(graph, value, np.zeros(1, np.int64))


def longer(node: ir.Node) -> None:
    """A length that is not that of the call, in the layer whose angles are no limit to it."""
    if node.attributes.get_int("do_rotary", 0):
        return
    length, graph = node.inputs[5], node.graph
    assert length is not None and isinstance(graph, ir.Graph)
    name = f"{node.name}/longer"
    more = ir.Value(name=f"{name}/more", const_value=ir.tensor(np.full(1, 8, np.int32), name=f"{name}/more"))
    more.type, more.shape = ir.TensorType(ir.DataType.INT32), ir.Shape([1])
    graph.register_initializer(more)
    total = ir.Node("", "Add", [length, more], name=name, outputs=[ir.Value(name=name)])
    graph.insert_before(node, total)
    node.replace_input_with(5, total.outputs[0])


def without_temperature(graph: ir.Graph) -> None:
    (scaled,) = [node for node in graph if "q_temperature" in str(node.name) and node.op_type == "Mul"][-1:]
    assert scaled.inputs[1] is not None
    constant_input(graph, scaled.inputs[1], np.ones((1, 1, 1), np.float16), scaled)


def other_epsilon(graph: ir.Graph) -> None:
    nodes = [node for node in graph if "epsilon" in node.attributes]
    assert nodes
    for node in nodes:
        attribute("epsilon", 0.1)(node)


GQA = "GroupQueryAttention"
WRONG: dict[str, tuple[str, Change]] = {
    "halves of a head turned against each other": ("none", of(GQA, attribute("rotary_interleaved", 0))),
    "no rotation": ("none", of(GQA, attribute("do_rotary", 0))),
    "scores not scaled": ("none", of(GQA, attribute("scale", 1.0))),
    "a length of another call": ("none", of(GQA, longer)),
    "temperature left out": ("none", without_temperature),
    "defaults not overridden": ("int4", defaults_in_place_of_inputs),
    "another epsilon": ("none", other_epsilon),
    "another activation": ("none", of("MoE", attribute("activation_alpha", 3.0))),
    "gate and up exchanged": ("none", of("MoE", weight(2, lambda w: w[:, ::-1]))),
    "experts in another order": ("int4", of("QMoE", weight(2, lambda w: np.roll(w, 1, axis=0)))),
    "codes in another order": ("int4", of("QMoE", weight(5, lambda w: w[..., ::-1]))),
    "bytes in another order": ("int8", of("QMoE", weight(2, lambda w: w[..., ::-1]))),
    "products of other codes": ("int4", of("MatMulNBits", weight(1, lambda w: w[..., ::-1]))),
    "rows of the embedding moved": ("int4", of("GatherBlockQuantized", weight(0, lambda w: np.roll(w, 1, axis=0)))),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_provider_that_computes_something_else_is_refused(judged: Callable[[str], Path], wrong: str) -> None:
    quant, change = WRONG[wrong]
    with pytest.raises(EnvironmentLacks, match=r"computes the layers 0, 3 differently .* by [\d.]+ of the largest"):
        check(judged(quant), computing(change))


def test_a_head_that_is_wrong_in_one_place(wide_scout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one of those whose logits are kept at every position."""
    monkeypatch.setattr(check_graph, "_COLUMNS", 4)
    path = judged_engine(wide_scout, tmp_path / "e")
    record = load_file(path / CHECK_RECORD)
    assert record["sampled"].shape == (41, 4) and record["whole"].shape == (2, 256)
    (column, *_) = set(range(256)) - set(record["columns"])

    def change(graph: ir.Graph) -> None:
        (head,) = [node for node in graph if str(node.name).startswith("/lm_head/MatMul")]
        weight(1, lambda rows: np.where(np.arange(256)[:, None] == column, -rows, rows))(head)

    check(path)
    with pytest.raises(EnvironmentLacks, match=r"differently .* at position (31|47);"):
        check(path, computing(change))


def test_a_call_that_is_refused(judged: Callable[[str], Path]) -> None:
    def lengths_of_two_rows(graph: ir.Graph) -> None:
        lengths = next(node for node in graph if node.op_type == GQA).inputs[5]
        assert lengths is not None
        constant_input(graph, lengths, np.zeros(2, np.int32))

    with pytest.raises(EnvironmentLacks, match=rf"{CPU} does not execute the check graph: the engine refused the call"):
        check(judged("none"), computing(lengths_of_two_rows))


def test_one_byte_of_a_weight(judged: Callable[[str], Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(judged("none"), tmp_path / "e"))
    graph = ir.load(path / "check.onnx").graph
    tensor = graph.initializers["model.layers.3.self_attn.o_proj.weight"].const_value
    assert isinstance(tensor, ir.ExternalTensor) and tensor.offset is not None
    with open(path / str(tensor.location), "r+b") as file:
        file.seek(tensor.offset + 1)  # the sign and the exponent of a float16
        (byte,) = file.read(1)
        file.seek(tensor.offset + 1)
        file.write(bytes([byte | 0x7C]))
    name = str(tensor.location)
    rewrite(path, lambda raw: raw["files"].update({name: vars(file_record(path / name))}))
    with pytest.raises(EnvironmentLacks, match="differently"):
        check(path)


def test_what_is_not_finite_is_refused(judged: Callable[[str], Path]) -> None:
    with pytest.raises(EnvironmentLacks, match="by nan of the largest logit"):
        check(judged("none"), computing(of(GQA, attribute("scale", float("nan")))))


def test_zeros_are_no_failure(wide_scout: Path, tmp_path: Path) -> None:
    """Of a sample whose weights are holes in a file."""
    empty = copy_checkpoint(wide_scout, tmp_path / "c")
    weights = load_file(empty / "model.safetensors")
    save_file({name: np.zeros_like(array) for name, array in weights.items()}, empty / "model.safetensors")
    assert check(judged_engine(empty, tmp_path / "e", "int4")) == 0.0


# Where it ran --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["GroupQueryAttention", "QMoE", "MatMulNBits", "FusedMatMul"])
def test_an_operator_that_fell_back_is_refused_by_name(judged: Callable[[str], Path], operator: str) -> None:
    words = rf"{operator} /\S+ is executed by {CPU} instead of {CUDA}"
    with pytest.raises(EnvironmentLacks, match=words):
        check(judged("int4"), said_to_be_on_cuda(but=operator))


def test_all_operators_on_the_provider_pass(judged: Callable[[str], Path]) -> None:
    assert check(judged("int4"), said_to_be_on_cuda(but="none of them")) < 1e-3


def test_an_operator_that_was_not_executed_is_refused_by_name(judged: Callable[[str], Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(judged("int4"), tmp_path / "e"))
    rewrite(path, lambda raw: raw["graphs"]["check"]["operators"].append("Lost"))
    with pytest.raises(EnvironmentLacks, match="has executed no Lost"):
        check(path)


# What is judged by ---------------------------------------------------------------------------------------------------


def rewrite(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    raw = json.loads((path / MANIFEST).read_text())
    edit(raw)
    (path / MANIFEST).write_text(json.dumps(raw))


def test_an_engine_without_a_check_graph_is_refused(judged: Callable[[str], Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(judged("none"), tmp_path / "e"))
    rewrite(path, lambda raw: raw["graphs"].pop("check"))
    with pytest.raises(InputError, match="has no check graph, by which a GPU is judged; build the engine again"):
        check(path)


DAMAGES: dict[str, Callable[[dict[str, np.ndarray]], Any]] = {
    "a tensor is missing": lambda record: record.pop("whole"),
    "another tensor": lambda record: record.update(more=np.zeros(1, np.float32)),
    "too few tokens": lambda record: record.update(ids=record["ids"][:-1]),
    "another dtype": lambda record: record.update(ids=record["ids"].astype(np.float32)),
    "a token that there is not": lambda record: record["ids"].__setitem__(3, 256),
    "a negative token": lambda record: record["ids"].__setitem__(3, -1),
    "a column that there is not": lambda record: record["columns"].__setitem__(0, 1 << 30),
    "columns of a table": lambda record: record.update(columns=record["columns"].reshape(2, -1)),
    "a column less": lambda record: record.update(columns=record["columns"][1:]),
    "no columns": lambda record: record.update(columns=record["columns"][:0], sampled=record["sampled"][:, :0]),
    "logits of another vocabulary": lambda record: record.update(whole=record["whole"][:, 1:]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_refused(judged: Callable[[str], Path], tmp_path: Path, damage: str) -> None:
    path = Path(shutil.copytree(judged("none"), tmp_path / "e"))
    record = load_file(path / CHECK_RECORD)
    DAMAGES[damage](record)
    save_file(record, path / CHECK_RECORD)
    with pytest.raises(InputError, match=rf"{CHECK_RECORD}: is not the record of this engine's check graph"):
        check(path)


# Once a machine ------------------------------------------------------------------------------------------------------


class Machine:
    """One with a GPU. `judged` counts the checks, which pass unless they are `real`."""

    def __init__(self, patch: pytest.MonkeyPatch, caches: Path) -> None:
        self.judged, self.real, self.gpu = 0, False, stand_ins.install(patch, judges=True)
        patch.setenv("XDG_CACHE_HOME", str(caches))
        real = composition_check.check_composition

        def counted(*arguments: Any) -> float:
            self.judged += 1
            return real(*arguments) if self.real else 0.0

        patch.setattr(composition_check, "check_composition", counted)

    def opens(self, path: Path) -> int:
        """How many checks it takes to open an engine."""
        before = self.judged
        self.engine = runtimes.load(path, threads=1)
        return self.judged - before


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path / "caches")


def test_an_engine_is_judged_once(machine: Machine, judged: Callable[[str], Path], tmp_path: Path) -> None:
    machine.real = True
    assert [machine.opens(judged("none")) for _ in range(3)] == [1, 0, 0]
    assert len(list(machine.engine.generate([1, 2, 3], 2, stop_token_ids=()))) == 2
    moved = Path(shutil.copytree(judged("none"), tmp_path / "moved"))
    assert machine.opens(moved) == 0
    assert machine.opens(judged("int4")) == 1
    (kept, _) = (tmp_path / "caches/l4export").iterdir()
    assert kept.read_bytes().startswith(b"{") and kept.name.startswith("passed-")


def test_another_machine_judges_again(
    machine: Machine, judged: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(judged("none"), tmp_path / "e"))
    assert machine.opens(path) == 1
    for machine.gpu.driver in (Driver("Imagined 200"), Driver(capability=(9, 0)), Driver(version=13010)):
        assert [machine.opens(path), machine.opens(path)] == [1, 0]
    monkeypatch.setattr("l4export.machine.cuda._MODULE", tmp_path / "version")
    (tmp_path / "version").write_text("580.65.06\n")
    assert [machine.opens(path), machine.opens(path)] == [1, 0]
    monkeypatch.setattr(ort, "__version__", "9.9.9")
    assert [machine.opens(path), machine.opens(path)] == [1, 0]
    rewrite(path, lambda raw: raw.update(generator="another build"))
    assert [machine.opens(path), machine.opens(path)] == [1, 0]
    monkeypatch.setattr(verdicts, "_FORMAT", "a closer look")
    assert [machine.opens(path), machine.opens(path)] == [1, 0]


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff" * 1000, b'{"engine": "another"}\n'], ids=repr)
def test_verdicts_of_others_are_ignored_and_written_anew(
    machine: Machine, judged: Callable[[str], Path], tmp_path: Path, text: bytes
) -> None:
    machine.opens(judged("none"))
    (kept,) = (tmp_path / "caches/l4export").iterdir()
    own = kept.read_bytes()
    kept.write_bytes(text)
    assert [machine.opens(judged("none")), machine.opens(judged("none"))] == [1, 0]
    assert kept.read_bytes() == own


def test_where_nothing_can_be_kept_engines_open_all_the_same(
    machine: Machine, judged: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "caches").write_text("a file where a directory should be")
    assert [machine.opens(judged("none")), machine.opens(judged("none"))] == [1, 1]

    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setattr(Path, "home", no_home)
    assert machine.opens(judged("none")) == 1
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert [machine.opens(judged("none")), machine.opens(judged("none"))] == [1, 0]
    assert len(list((tmp_path / ".cache/l4export").iterdir())) == 1


def test_failures_are_not_kept(machine: Machine, judged: Callable[[str], Path], tmp_path: Path) -> None:
    machine.real = True
    path = Path(shutil.copytree(judged("none"), tmp_path / "e"))
    record = load_file(path / CHECK_RECORD)
    save_file({**record, "sampled": -record["sampled"]}, path / CHECK_RECORD)
    new = file_record(path / CHECK_RECORD)
    rewrite(path, lambda raw: raw["files"].update({CHECK_RECORD: vars(new)}))
    for _ in range(2):
        with pytest.raises(EnvironmentLacks, match="differently"):
            runtimes.load(path)
    assert not (tmp_path / "caches").exists()
