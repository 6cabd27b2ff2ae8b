"""Units are done in the order of the checkpoint's files, and files are fetched by one worker each."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from l4export.graph.builder import GraphBuilder
from l4export.storage.opened_file import OpenedFile
from l4export.weights import placement
from l4export.weights.order import UnitQueue
from l4export.weights.placement import Unit, place_weights, units
from l4export.weights.recipes import Recipe, Slice, Source, Transpose
from tiny_graphs import ArrayData, graph_input, model_of, typed

ROW = 1000 * 4


class Stored(ArrayData):
    """A tensor of zeros that lies in a file."""

    def __init__(self, file: OpenedFile, start: int, *shape: int) -> None:
        super().__init__(np.zeros(shape, np.float32))
        self.place = (file, start, start + self.array.nbytes)


@pytest.fixture
def files(tmp_path: Path) -> list[OpenedFile]:
    for name in "ab":
        (tmp_path / name).touch()
    return [OpenedFile(tmp_path / name) for name in "ab"]


def work_of(weights: dict[str, Recipe], unit_bytes: int, monkeypatch: pytest.MonkeyPatch) -> list[Unit]:
    monkeypatch.setattr(placement, "_UNIT_BYTES", unit_bytes)
    b = GraphBuilder()
    for name, recipe in weights.items():
        b.initializer(recipe, name)
    x = graph_input("x", ir.DataType.FLOAT, 1)
    model = model_of(b, [x], [typed(b.op("Identity", x), ir.DataType.FLOAT)])
    return units(place_weights(model, "decoder"))


def test_the_order_is_that_of_each_file(files: list[OpenedFile], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two halves of the experts' matrices, whose units take turns; a second file; a table that is in no file."""
    a, b = files
    experts = Source(Stored(a, ROW * 4, 4, 2, 1000))
    weights: dict[str, Recipe] = {
        "late": Source(Stored(a, ROW * 12, 2, 1000)),
        "up": Transpose(Slice(experts, 2, 500, 1000), (0, 2, 1)),
        "other": Source(Stored(b, 0, 1000)),
        "gate": Transpose(Slice(experts, 2, 0, 500), (0, 2, 1)),
        "early": Source(Stored(a, 0, 4, 1000)),
        "table": Source(ArrayData(np.zeros(1000, np.float32))),
    }
    work = work_of(weights, 2 * ROW, monkeypatch)
    queue = UnitQueue(work)
    names = [queue.take().name for _ in work]
    assert names == ["early", "early", *["up", "gate"] * 2, "late", "other", "table"]


def test_what_a_unit_reads_is_announced_before_it_is_taken(
    files: list[OpenedFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[int] = []
    files[0].follower = reached.append
    work = work_of({"w": Source(Stored(files[0], 40, 8, 1000))}, 3 * ROW, monkeypatch)
    queue = UnitQueue(work)
    assert [queue.take().number for _ in work] == [0, 1, 2]
    assert reached == [40 + 3 * ROW, 40 + 6 * ROW, 40 + 8 * ROW]


def test_who_would_have_to_wait_begins_with_the_next_file(
    files: list[OpenedFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def follow(_: int) -> None:
        begun.set()
        assert go_on.wait(60)

    files[0].follower = follow
    weights: dict[str, Recipe] = {
        f"{name} {row}": Source(Stored(file, row * ROW, 1000))
        for file, name in zip(files, "ab", strict=True)
        for row in (0, 1)
    }
    queue = UnitQueue(work_of(weights, ROW, monkeypatch))
    first = threading.Thread(target=queue.take)
    first.start()
    assert begun.wait(60) and queue.take().name == "b 0"
    go_on.set()
    first.join()
    assert [queue.take().name for _ in range(2)] == ["a 1", "b 1"]


def test_files_are_fetched_by_one_worker_each_even_if_fetching_fails(
    files: list[OpenedFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError("the disk")

    files[0].follower = fail
    weights: dict[str, Recipe] = {
        "a 0": Source(Stored(files[0], 0, 1000)),
        "a 1": Source(Stored(files[0], ROW, 1000)),
        "b": Source(Stored(files[1], 0, 1000)),
    }
    queue = UnitQueue(work_of(weights, ROW, monkeypatch))
    with pytest.raises(OSError, match="the disk"):
        queue.take()
    files[0].follower = None
    assert [queue.take().name for _ in range(2)] == ["a 1", "b"]
