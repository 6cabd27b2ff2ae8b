"""Notes of what values hold: they survive files, copies and the library's passes, and everything else ignores them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes import common

from l4export.errors import InputError
from l4export.graph.builder import GraphBuilder
from l4export.graph.contents import (
    LayerValue,
    Weights,
    is_cache,
    layer_value_of,
    layer_values,
    note,
    relaid,
    weights_of,
)
from tiny_graphs import graph_input, model_of, typed

FLOAT = ir.DataType.FLOAT
STACKED = Weights(("q.weight", 'with "quotes" | and .codes'), "interleaved", "codes")
SMALL = Weights(("norm.weight",))
NOTES = {"past": LayerValue("past_key", 3), "mid": LayerValue("residual", 3), "present": LayerValue("present_key", 3)}


def noted(folder: Path) -> ir.Model:
    """present = past W + norm: a weight in a file, one in the graph, an input, a value between and an output."""
    b = GraphBuilder()
    past = note(graph_input("past", FLOAT, 2), NOTES["past"])
    (folder / "weights").write_bytes(np.eye(4, dtype=np.float32).tobytes())
    shape = ir.Shape([4, 4])
    stored = ir.ExternalTensor("weights", 0, 64, FLOAT, shape=shape, name="w", base_dir=folder)
    weight = b.initializer(stored, "w", STACKED)
    norm = b.initializer(ir.tensor(np.ones(4, dtype=np.float32)), "norm", SMALL)
    mid = note(b.op("MatMul", past, weight, name="mid"), NOTES["mid"])
    present = note(typed(b.op("Add", mid, norm, name="present"), FLOAT), NOTES["present"])
    present.shape = ir.Shape(["rows", 4])
    model = model_of(b, [past], [present])
    model.functions.clear()
    model.opset_imports.pop("l4")
    return model


def written(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(ir.to_proto(noted(folder)).SerializeToString())
    return path


def library_passes(graph: ir.Graph) -> ir.Graph:
    model = ir.Model(graph, ir_version=11)
    for step in (
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.TopologicalSortPass(),
        common.ShapeInferencePass(),
    ):
        step(model)
    return model.graph


def everything(graph: ir.Graph) -> ir.Graph:
    return ir.convenience.extract(graph, list(graph.inputs), list(graph.outputs))


@pytest.mark.parametrize("through", [lambda graph: graph, ir.Graph.clone, everything, library_passes])
@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "from a file"])
def test_notes_survive(tmp_path: Path, stored: bool, through: Callable[[ir.Graph], ir.Graph]) -> None:
    model = ir.load(written(tmp_path)) if stored else noted(tmp_path)
    graph = through(model.graph)
    assert weights_of(graph.initializers["w"]) == STACKED
    assert weights_of(graph.initializers["norm"]) == SMALL
    assert {held.role: held for held in layer_values(graph)} == {held.role: held for held in NOTES.values()}


def test_what_reads_graphs_ignores_notes(tmp_path: Path) -> None:
    path = written(tmp_path)
    onnx.checker.check_model(str(path), full_check=True)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(session.run(None, {session.get_inputs()[0].name: x})[0], x + 1)


def test_tensorrt_ignores_notes(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(written(tmp_path)))
    assert [network.get_output(i).name for i in range(network.num_outputs)] == ["/present"]


def test_a_value_without_notes_holds_nothing_known() -> None:
    value = graph_input("x", FLOAT, 2)
    assert weights_of(None) is weights_of(value) is relaid(value, "stored") is layer_value_of(value) is None
    assert note(value, None) is value and not value.metadata_props and not is_cache(value)


def test_caches_are_told_from_other_values() -> None:
    roles = ("past_key", "past_value", "present_key", "present_value", "residual", "router_logits", "merged")
    values = [note(graph_input(role, FLOAT, 2), LayerValue(role, 1)) for role in roles]
    assert [is_cache(value) for value in values] == [True] * 4 + [False] * 3


def test_exchanging_axes_twice_changes_nothing() -> None:
    assert SMALL.swapped().layout == "transposed" and SMALL.swapped().swapped() == SMALL
    with pytest.raises(ValueError, match="rows in turn"):
        STACKED.swapped()


@pytest.mark.parametrize(
    "notes",
    [
        {"l4export.weights": "not JSON"},
        {"l4export.weights": '"a name"'},
        {"l4export.weights": "[]"},
        {"l4export.weights": "[1]"},
        {"l4export.part": "half"},
        {"l4export.layout": "upside down"},
    ],
)
def test_notes_that_make_no_sense_are_refused(notes: dict[str, str]) -> None:
    value = note(graph_input("w", FLOAT, 2), SMALL)
    value.metadata_props.update(notes)
    with pytest.raises(InputError, match="w: its notes do not say what it holds; build the engine again"):
        weights_of(value)


@pytest.mark.parametrize("notes", [{"l4export.role": "king"}, {"l4export.layer": "-1"}])
def test_a_role_that_makes_no_sense_is_refused(notes: dict[str, str]) -> None:
    value = note(graph_input("x", FLOAT, 2), LayerValue("residual", 1))
    value.metadata_props.update(notes)
    with pytest.raises(InputError, match="x: its notes do not say"):
        layer_value_of(value)
