"""Images through the runtime of CUDA engines: stand-ins for the driver and the provider, the kernels a CPU's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from seeing import PATCH, changed, prompt, seeing_checkpoint, seen
from tiny_vision import pixels

import cuda_stand_ins as stand_ins
from judged_engines import computing, judged_engine
from l4export import runtimes
from l4export.engine.check_decoder import check_decoder
from l4export.engine.check_record import read_record
from l4export.engine.manifest import load_manifest
from l4export.errors import EnvironmentLacks, InputError
from l4export.runtimes.onnxruntime.composition_check import check_composition
from l4export.runtimes.onnxruntime.engine import OnnxRuntimeEngine
from workshop import random_ids


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cuda")
    return judged_engine(seeing_checkpoint(path / "c"), path / "engine")


def test_a_prompt_with_images(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit what the same graph says on a CPU; steps of text are recorded once, those with a feature are run."""
    images = seen(built, [(14, 30), (9, 9)])
    ids = prompt(images, [5, 6, 9])
    on_cpu = runtimes.load(built, threads=1, provider="cpu")
    one, two, text = on_cpu.session(), on_cpu.session(batch=2), random_ids(20, 230)
    due = [one.append(ids, images=images), one.append([1]), one.append([2])]
    rows = two.append([ids, text], images=[images, None])
    machine = stand_ins.install(monkeypatch)
    engine = runtimes.load(built, threads=1)
    session = engine.session()
    np.testing.assert_array_equal(session.append(ids, images=images), due[0])
    for tokens, logits in zip(([1], [2]), due[1:], strict=True):
        np.testing.assert_array_equal(session.append(tokens), logits)
    assert [number for number in machine.runs if number != -1] == [1, 1]
    session.reset()
    session._piece = 1  # every call within an image has one token and one row
    before = len(machine.runs)
    # float16 has 11 bits, and products of one row and of many are summed in another order
    np.testing.assert_allclose(session.append(ids, images=images), due[0], rtol=0, atol=2e-2 * np.abs(due[0]).max())
    fed = np.count_nonzero(ids == PATCH)
    assert machine.runs[before:].count(-1) == fed and set(machine.runs[before:]) == {-1, 1}
    np.testing.assert_array_equal(engine.session(batch=2).append([ids, text], images=[images, None]), rows)


def test_counts_that_the_graph_does_not_refuse(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = seen(built, [(9, 9)])
    ids = prompt(images, [2, 3])
    stand_ins.install(monkeypatch)
    session = runtimes.load(built, threads=1).session()
    for tokens, given in ((ids, None), (ids[:5], images), ([*ids, PATCH], images)):
        with pytest.raises(InputError, match="image tokens"):
            session.append(tokens, images=given)


def _features_backwards(graph: ir.Graph) -> None:
    """The rows of features from the last to the first: a merge that counts from the wrong end."""
    features = next(value for value in graph.inputs if value.name == "image_features")
    readers = list(features.uses())
    bounds = [ir.tensor(np.array([bound], np.int64)) for bound in (-1, np.iinfo(np.int64).min, 0, -1)]
    constants = [ir.node("Constant", [], {"value": bound}) for bound in bounds]
    turned = ir.node("Slice", [features, *(constant.outputs[0] for constant in constants)])
    for node, index in readers:
        node.replace_input_with(index, turned.outputs[0])
    graph.insert_before(graph[0], [*constants, turned])


def test_a_card_is_judged_by_images_too(built: Path) -> None:
    """Three images of four rows, one of them across a chunk's end and one in the second call."""
    manifest = load_manifest(built)
    check = manifest.check
    assert check is not None
    decoder = check_decoder(manifest, check)
    record = read_record(built / check.record, check, decoder)
    assert record.features is not None and record.features.shape[:2] == (3, 4)
    assert np.flatnonzero(record.ids == PATCH).tolist() == [2, 3, 4, 5, 14, 15, 16, 17, 33, 34, 35, 36]
    check_composition(built, manifest, computing()(built))
    with pytest.raises(EnvironmentLacks, match=r"computes the layers .* differently"):
        check_composition(built, manifest, computing(_features_backwards)(built))


def _opened(built: Path) -> OnnxRuntimeEngine:
    engine = runtimes.load(built, threads=1)
    assert isinstance(engine, OnnxRuntimeEngine) and engine.device is not None
    return engine


def _count_sessions(patch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many sessions ONNX Runtime has opened since it was asked the last time."""
    opened: list[Any] = []
    made = ort.InferenceSession

    def counted(*given: Any, **named: Any) -> Any:
        opened.append(given)
        return made(*given, **named)

    def since() -> int:
        number = len(opened)
        opened.clear()
        return number

    patch.setattr(ort, "InferenceSession", counted)
    return since


def _swapped(path: Path) -> bytes:
    """The tower with two of the picture's axes exchanged: what a wrong layout of patches would be."""
    model = onnx.load(path, load_external_data=False)
    model.graph.node.insert(0, onnx.helper.make_node("Transpose", ["pixel_values"], ["turned"], perm=[0, 1, 3, 2]))
    for node in list(model.graph.node)[1:]:
        node.input[:] = ["turned" if name == "pixel_values" else name for name in node.input]
    return bytes(model.SerializeToString())


def _exchanged(path: Path) -> bytes:
    """The tower with its tiles in another order: right for each alone, and for many that are alike."""
    model = onnx.load(path, load_external_data=False)
    numbers = {"starts": [-1], "ends": [np.iinfo(np.int64).min], "axes": [0], "steps": [-1]}
    for name, values in numbers.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), f"turned.{name}"))
    turn = onnx.helper.make_node("Slice", ["pixel_values", *(f"turned.{name}" for name in numbers)], ["turned"])
    model.graph.node.insert(0, turn)
    for node in list(model.graph.node)[1:]:
        node.input[:] = ["turned" if name == "pixel_values" else name for name in node.input]
    return bytes(model.SerializeToString())


def test_tiles_that_are_exchanged_on_the_card(built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stand_ins.install(monkeypatch, judges=True).tower = _exchanged
    with pytest.raises(EnvironmentLacks, match=r"differently from the CPU, by .* with 2 tiles"):
        _opened(built).image_features(pixels(1, 16))


def test_the_tower_is_judged_once_by_the_cpu(built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = stand_ins.install(monkeypatch, judges=True)
    tiles = pixels(3, 16)
    first, second = (_opened(built) for _ in range(2))
    opened = _count_sessions(monkeypatch)
    expected = first.image_features(tiles)
    assert opened() == 2, "the tower on the card, and the CPU's"
    np.testing.assert_array_equal(second.image_features(tiles), expected)
    assert opened() == 1, "the verdict was kept"
    on_cpu = runtimes.load(built, threads=1, provider="cpu")
    assert isinstance(on_cpu, OnnxRuntimeEngine)
    np.testing.assert_array_equal(on_cpu.image_features(tiles), expected)
    for path in (tmp_path / "l4export").iterdir():
        path.unlink()
    machine.tower = _swapped
    with pytest.raises(
        EnvironmentLacks, match=r"Stand-in computes the vision tower differently from the CPU, by 0\.\d"
    ):
        _opened(built).image_features(tiles)


def test_no_room_for_the_tower(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = stand_ins.install(monkeypatch)
    engine = _opened(built)
    machine.driver.limit = 10**5
    with pytest.raises(EnvironmentLacks, match=r"its vision tower needs 0\.0 GB of GPU memory for weights and 0\.0 GB"):
        engine.image_features(pixels(1, 16))
    machine.driver.limit = 1 << 30
    assert np.isfinite(engine.image_features(pixels(1, 16))).all(), "it is usable once there is room"


def test_features_beyond_float16(tmp_path: Path) -> None:
    """A tower whose last product is too large: named, with the option that helps; in float32 it is right."""
    large = changed(
        seeing_checkpoint(tmp_path / "c"), tmp_path / "large", "multi_modal_projector.linear_1.weight",
        lambda weight: np.where(weight < 0, np.float32(-6e4), np.float32(6e4)),
    )  # fmt: skip
    engine = runtimes.load(judged_engine(large, tmp_path / "e"), threads=1, provider="cpu")
    assert isinstance(engine, OnnxRuntimeEngine)
    with pytest.raises(
        InputError, match=r"computes in fp16, .* beyond its range; build the engine with --vision-dtype"
    ):
        engine.image_features(pixels(1, 16))
