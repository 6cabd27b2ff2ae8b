from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from l4export.errors import InputError
from l4export.graph.builder import GraphBuilder
from l4export.storage.file_records import file_record
from l4export.weights import emission, placement
from l4export.weights.emission import emit
from l4export.weights.evaluation import Evaluation, Output
from l4export.weights.placement import DataFile, place_weights, units
from l4export.weights.recipes import Cast, Interleave, Recipe, Region, Slice, Source, Transpose
from tiny_graphs import UnreadableData, graph_input, model_of, source, typed
from workshop import ROOT

FLOAT = ir.DataType.FLOAT


def model_with(weights: dict[str, ir.TensorProtocol]) -> ir.Model:
    """A graph that carries these weights."""
    b = GraphBuilder()
    for name, tensor in weights.items():
        b.initializer(tensor, name)
    x = graph_input("x", FLOAT, 1)
    return model_of(b, [x], [typed(b.op("Identity", x), FLOAT)])


def huge(*shape: int) -> Recipe:
    return Source(UnreadableData(shape, np.float32))


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def assorted() -> dict[str, ir.TensorProtocol]:
    """Weights of every kind of recipe, of sizes that are no multiples of a page or a block."""
    experts = source(random(3, 20, 34).astype(ml_dtypes.bfloat16))
    halves = [Transpose(Slice(experts, 2, start, start + 17), (0, 2, 1)) for start in (0, 17)]
    return {
        "plain": source(random(50, 21)),
        "narrow": Cast(source(random(33, 70)), ir.DataType.FLOAT16),
        "small": source(random(5)),
        "experts": Cast(Interleave(halves, 1), FLOAT),
        "in memory": ir.tensor(random(1000)),
        "transposed": Transpose(source(random(40, 30)), (1, 0)),
    }


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emission, "_BLOCK_BYTES", 1000)


# plan


def spans(files: list[DataFile]) -> Iterator[tuple[str, int, int]]:
    for file in files:
        for placed in file.placements:
            yield file.name, placed.offset, placed.offset + placed.recipe.nbytes


def test_offsets_are_aligned_to_pages() -> None:
    files = place_weights(model_with(assorted()), "decoder")
    assert all(start % 4096 == 0 for _, start, _ in spans(files))


def test_weights_do_not_overlap_and_fill_the_file() -> None:
    (file,) = place_weights(model_with(assorted()), "decoder")
    ends = [0]
    for _, start, end in spans([file]):
        assert ends[-1] <= start < ends[-1] + 4096
        ends.append(end)
    assert file.size == ends[-1]


def test_weights_keep_the_order_of_the_graph() -> None:
    (file,) = place_weights(model_with(assorted()), "decoder")
    names = [placed.name for placed in file.placements]
    assert names == ["plain", "narrow", "experts", "in memory", "transposed"]


@pytest.mark.parametrize(("elements", "files"), [(256, 0), (257, 1)])
def test_up_to_a_kilobyte_stays_in_the_graph(elements: int, files: int) -> None:
    assert len(place_weights(model_with({"w": source(random(elements))}), "decoder")) == files


def test_a_file_ends_before_it_exceeds_4_gib() -> None:
    weights = {f"w{i}": huge(1 << 18, 1 << 10) for i in range(9)}  # 1 GiB each
    files = place_weights(model_with(weights), "decoder")
    assert [len(file.placements) for file in files] == [4, 4, 1]
    assert [file.size for file in files] == [4 << 30, 4 << 30, 1 << 30]
    assert all(file.placements[0].offset == 0 for file in files)


def test_alignment_counts_towards_the_limit() -> None:
    # 4 GiB - 8000 bytes, then 5000: they would fit if the second could begin where the first ends
    weights = {"first": huge((1 << 30) - 2000), "second": huge(1250)}
    assert [len(file.placements) for file in place_weights(model_with(weights), "decoder")] == [1, 1]


def test_a_weight_larger_than_a_file_has_its_own() -> None:
    weights = {"before": huge(1 << 20), "large": huge(1 << 20, 1 << 12), "after": huge(1 << 20)}
    files = place_weights(model_with(weights), "decoder")
    assert [[placed.name for placed in file.placements] for file in files] == [["before"], ["large"], ["after"]]
    assert files[1].size == 16 << 30


def test_files_are_numbered_of_their_count() -> None:
    weights = {f"w{i}": huge(1 << 30) for i in range(2)}
    names = [file.name for file in place_weights(model_with(weights), "stem")]
    assert names == ["stem-00001-of-00002.data", "stem-00002-of-00002.data"]


def test_a_model_without_large_weights_has_no_files() -> None:
    assert place_weights(model_with({}), "decoder") == []


# emit


def emitted(directory: Path, jobs: int) -> dict[str, bytes]:
    directory.mkdir()
    names = emit(model_with(assorted()), directory, "decoder", jobs)
    assert sorted(names) == sorted(path.name for path in directory.iterdir())
    return {name: (directory / name).read_bytes() for name in names}


@pytest.mark.usefixtures("small_blocks")
def test_every_weight_lies_where_it_was_planned(tmp_path: Path) -> None:
    (file,) = place_weights(model_with(assorted()), "decoder")
    data = emitted(tmp_path / "out", jobs=2)[file.name]
    assert len(data) == file.size
    for placed in file.placements:
        nbytes = placed.recipe.nbytes
        assert data[placed.offset : placed.offset + nbytes] == placed.recipe.numpy().tobytes(), placed.name


@pytest.mark.usefixtures("small_blocks")
def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    one, *others = (emitted(tmp_path / str(jobs), jobs) for jobs in (1, 2, 7))
    assert all(other == one for other in others)


def test_the_size_of_blocks_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = emitted(tmp_path / "large", 2)
    monkeypatch.setattr(emission, "_BLOCK_BYTES", 130)
    assert emitted(tmp_path / "small", 2) == large


def test_onnx_reads_the_weights_back(tmp_path: Path) -> None:
    weights = assorted()
    emit(model_with(weights), tmp_path, "decoder", 2)
    loaded = {tensor.name: tensor for tensor in onnx.load(tmp_path / "decoder.onnx").graph.initializer}
    for name, tensor in weights.items():
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded[name]), tensor.numpy(), strict=True)


def test_small_weights_are_in_the_graph_file(tmp_path: Path) -> None:
    emit(model_with(assorted()), tmp_path, "decoder", 1)
    loaded = onnx.load(tmp_path / "decoder.onnx", load_external_data=False).graph.initializer
    assert [tensor.name for tensor in loaded if not tensor.external_data] == ["small"]


def test_the_models_weights_refer_to_the_files_afterwards(tmp_path: Path) -> None:
    model = model_with(assorted())
    emit(model, tmp_path, "decoder", 1)
    tensor = model.graph.initializers["plain"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    np.testing.assert_array_equal(tensor.numpy(), random(50, 21))


@pytest.mark.usefixtures("small_blocks")
def test_progress_adds_up_to_the_weights_bytes(tmp_path: Path) -> None:
    (file,) = place_weights(model_with(assorted()), "decoder")
    seen: list[int] = []
    emit(model_with(assorted()), tmp_path, "decoder", 2, seen.append)
    assert len(seen) > 10 and min(seen) > 0
    assert sum(seen) == sum(placed.recipe.nbytes for placed in file.placements)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = emitted(tmp_path / "whole", 1)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:999], offset))
    assert emitted(tmp_path / "short", 1) == whole


class Failing(Recipe):
    """Fails in its last row."""

    def __init__(self, error: Exception) -> None:
        super().__init__(FLOAT, (100, 10))
        self.error = error

    def read(self, region: Region) -> np.ndarray:
        if region[0].stop == 100:
            raise self.error
        return np.zeros([cut.stop - cut.start for cut in region], np.float32)


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.usefixtures("small_blocks")
def test_a_weight_that_cannot_be_converted_is_named(tmp_path: Path, jobs: int) -> None:
    model = model_with({"fine": source(random(1000)), "too.large": Failing(ValueError("does not fit float16"))})
    with pytest.raises(InputError, match=r"^too\.large: does not fit float16; choose another --dtype$"):
        emit(model, tmp_path, "decoder", jobs)


def test_a_value_too_large_for_float16_is_told_with_its_weight(tmp_path: Path) -> None:
    weight = Cast(source(np.full((300, 2), 1e6, np.float32)), ir.DataType.FLOAT16)
    with pytest.raises(InputError, match=r"^big: a weight of magnitude 1e\+06 does not fit float16"):
        emit(model_with({"big": weight}), tmp_path, "decoder", 2)


@pytest.mark.parametrize("error", [InputError("shrank while open"), OSError(5, "device error"), MemoryError()])
def test_other_errors_pass_as_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        emit(model_with({"w": Failing(error)}), tmp_path, "decoder", 2)
    assert raised.value is error


@pytest.mark.usefixtures("small_blocks")
def test_no_worker_is_left_running_after_an_error(tmp_path: Path) -> None:
    import threading

    before = threading.active_count()
    with pytest.raises(InputError):
        emit(model_with({"w": Failing(ValueError("no"))}), tmp_path, "decoder", 3)
    assert threading.active_count() == before


# Several outputs of one evaluation


class Rows(Evaluation):
    """Per row of [3, 50, 64] its values halved and its smallest: fake codes and scales, 16 rows at a time."""

    def __init__(self, part: Recipe) -> None:
        super().__init__(part.dims[:2], row_multiple=16)
        self.part = part
        self.regions: list[Region] = []
        self.outputs = (Output(self, 0, FLOAT, part.dims), Output(self, 1, ir.DataType.FLOAT16, (3, 50, 8)))

    def evaluate(self, region: Region) -> tuple[np.ndarray, ...]:
        self.regions.append(region)
        values = self.part.read((*region, slice(0, 64)))
        scales = np.sort(values, -1)[..., :8].astype(np.float16)
        return values / 2, scales


def several(evaluation: Rows) -> dict[str, ir.TensorProtocol]:
    codes, scales = evaluation.outputs
    again = Output(evaluation, 1, scales.dtype, scales.dims)
    return {"codes": codes, "between": source(random(700)), "scales": scales, "tied": again}


def rows() -> Rows:
    return Rows(source(random(3, 50, 64)))


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("block", [1, 5000, 20_000, 1 << 20])
def test_outputs_of_one_evaluation_are_written_where_each_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, block: int
) -> None:
    monkeypatch.setattr(emission, "_BLOCK_BYTES", block)
    evaluation = rows()
    emit(model_with(several(evaluation)), tmp_path, "decoder", jobs)
    cells = sorted(
        (expert, row)
        for experts, rows_ in evaluation.regions
        for expert in range(experts.start, experts.stop)
        for row in range(rows_.start, rows_.stop)
    )
    assert cells == [(expert, row) for expert in range(3) for row in range(50)], "each row is evaluated once"
    assert all(n.start % 16 == 0 and (n.stop % 16 == 0 or n.stop == 50) for _, n in evaluation.regions)
    loaded = {tensor.name: tensor for tensor in onnx.load(tmp_path / "decoder.onnx").graph.initializer}
    for name, tensor in several(rows()).items():
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded[name]), tensor.numpy(), strict=True)


def test_the_same_output_has_one_place() -> None:
    (file,) = place_weights(model_with(several(rows())), "decoder")
    assert [[value.name for value in placed.values] for placed in file.placements] == [
        ["codes"],
        ["between"],
        ["scales", "tied"],
    ]


def test_outputs_may_lie_in_different_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_FILE_BYTES", 40_000)
    model = model_with(several(rows()))
    assert len(place_weights(model, "decoder")) == 2
    monkeypatch.setattr(placement, "_UNIT_BYTES", 9000)
    records = emit(model, tmp_path, "decoder", 2)
    for name, record in records.items():
        assert record is None or record == file_record(tmp_path / name)
    np.testing.assert_array_equal(model.graph.initializers["tied"].const_value.numpy(), rows().outputs[1].numpy())


def test_units_cover_every_byte_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_UNIT_BYTES", 2000)
    files = place_weights(model_with(assorted() | several(rows())), "decoder")
    parts = sorted((part.offset, part.offset + part.nbytes) for unit in units(files) for part in unit.parts)
    assert len(parts) > 30 > len(files[0].placements)
    for placed in files[0].placements:
        ours = [(a, b) for a, b in parts if placed.offset <= a < placed.offset + placed.recipe.nbytes]
        assert ours[0][0] == placed.offset and ours[-1][1] == placed.offset + placed.recipe.nbytes
        assert all(before[1] == after[0] for before, after in itertools.pairwise(ours))


def test_a_small_weight_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    weight = Cast(source(np.full(8, 1e6, np.float32)), ir.DataType.FLOAT16)
    with pytest.raises(InputError, match=r"^norm: a weight of magnitude 1e\+06 does not fit float16"):
        emit(model_with({"norm": weight}), tmp_path, "decoder", 2)


# Memory

_MEASURED = """
import os, sys
from pathlib import Path
import onnx_ir as ir
from l4export.storage.safetensors import TensorFile
from l4export.checkpoint import SourceTensor
from l4export.weights.emission import emit
from l4export.weights.recipes import Cast, Interleave, Slice, Source, Transpose
from measured_process import own_peak
from test_emission import model_with

directory, jobs, budget = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
written = 0
def swallow(descriptor, data, offset):  # the bytes go nowhere: this is about memory, not the disk
    global written
    written += len(data)
    return len(data)
os.pwrite = swallow
file = TensorFile(directory / "sparse.safetensors")
def stored(name):
    return Source(SourceTensor(file.entries[name], file))
experts = stored("experts")
half = experts.dims[2] // 2
halves = [Transpose(Slice(experts, 2, start, start + half), (0, 2, 1)) for start in (0, half)]
weights = {
    "linear": Cast(stored("linear"), ir.DataType.FLOAT),
    "narrow": Cast(Slice(stored("linear"), 0, 0, 40_000), ir.DataType.FLOAT16),
    "fc1": Cast(Interleave(halves, 1), ir.DataType.FLOAT),
}
expected = sum(weight.nbytes for weight in weights.values())
before = own_peak()
emit(model_with(weights), directory, "decoder", jobs, budget=budget)
assert written == expected, (written, expected)
print(own_peak() - before)
"""


def sparse_checkpoint(path: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """A safetensors file of zeros that takes no room on the disk; returns the bytes of its tensors."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.truncate(8 + len(text) + end)
    return end


@pytest.mark.parametrize(("jobs", "budget"), [(2, 48 << 20), (2, 200 << 20), (4, 100 << 20)])
def test_memory_stays_within_the_budget(tmp_path: Path, jobs: int, budget: int) -> None:
    nbytes = sparse_checkpoint(
        tmp_path / "sparse.safetensors", {"linear": (50_776, 2048), "experts": (2, 2048, 20_480)}
    )
    assert nbytes > 3.7e8  # its largest weights take more than any of the limits, as they are written
    path = os.pathsep.join([*(str(ROOT / "tests" / name) for name in ("support", "weights")), *sys.path])
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-c", _MEASURED, str(tmp_path), str(jobs), str(budget)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=180)
    mapped = jobs * (32 << 20)  # what a read maps of the source at a time
    assert int(result.stdout) < budget + mapped + (16 << 20)  # threads, and pieces that are read back for digests
