"""Files of sessions: what is in them, and that damaged, foreign and hostile ones are refused in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from saved_files import Tensors, forged

from l4export.errors import InputError, StorageError
from l4export.runtimes.engine import Engine
from l4export.storage.safetensors import TensorFile
from workshop import LAYOUTS, Workshop, random_ids

layouts = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture
def engine(workshop: Workshop) -> Engine:
    return workshop.engine("scout", "chunked")


@pytest.fixture
def saved(engine: Engine, tmp_path: Path) -> Path:
    """Two rows of 37 and 20 tokens."""
    session = engine.session(batch=2)
    session.append([random_ids(37), random_ids(20, seed=1)])
    session.save(tmp_path / "session")
    return tmp_path / "session"


def refusal(engine: Engine, path: Path) -> str:
    with pytest.raises(InputError) as caught:
        engine.load_session(path)
    assert len(str(caught.value).splitlines()) == 1 and str(path) in str(caught.value)
    return str(caught.value)


@layouts
def test_only_slots_in_use_take_room(workshop: Workshop, tmp_path: Path, layout: str) -> None:
    session = workshop.engine("scout", layout).session(batch=2)
    session.append([random_ids(37), random_ids(20)])
    session.save(tmp_path / "s")
    for row, count in enumerate((37, 20)):
        for layer in range(4):
            used = count % 16 if layout == "chunked" and layer < 3 else count
            assert load_file(tmp_path / "s")[f"{row}.{layer}.key"].shape == (2, used, 16)


@layouts
def test_a_session_without_tokens(workshop: Workshop, tmp_path: Path, layout: str) -> None:
    engine, ids = workshop.engine("scout", layout), random_ids(20)
    engine.session().save(tmp_path / "s")
    np.testing.assert_array_equal(engine.load_session(tmp_path / "s").append(ids), engine.session().append(ids))


def test_the_same_session_gives_the_same_bytes_and_replaces_what_is_there(engine: Engine, saved: Path) -> None:
    before = saved.read_bytes()
    engine.load_session(saved).save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["session"]


def test_a_session_of_another_engine_is_refused(workshop: Workshop, saved: Path) -> None:
    for other in (workshop.engine("scout", "static"), workshop.engine("scout-top2", "chunked")):
        assert "saved with another engine" in refusal(other, saved)


def test_a_checkpoint_is_no_session(workshop: Workshop, engine: Engine) -> None:
    assert "not a session" in refusal(engine, workshop.checkpoint("scout") / "model.safetensors")


def test_a_file_that_is_not_there(engine: Engine, tmp_path: Path) -> None:
    assert "no such file" in refusal(engine, tmp_path / "missing")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_bit_that_flipped_is_noticed(engine: Engine, saved: Path, data: st.DataObject) -> None:
    content = bytearray(saved.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path = saved.with_name("flipped")
    path.write_bytes(content)
    refusal(engine, path)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_short_is_refused(engine: Engine, saved: Path, data: st.DataObject) -> None:
    content = saved.read_bytes()
    path = saved.with_name("short")
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    refusal(engine, path)


def put(name: str, value: Any) -> Callable[[dict[str, Any], Tensors], Any]:
    return lambda state, tensors: state.__setitem__(name, value)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(put("capacity", 0), id="no capacity"),
        pytest.param(put("capacity", 36), id="fewer slots than tokens"),
        pytest.param(put("capacity", 257), id="more than the engine's context"),
        pytest.param(put("capacity", True), id="capacity of another type"),
        pytest.param(put("capacity", 10**30), id="capacity of thirty digits"),
        pytest.param(put("lengths", []), id="no rows"),
        pytest.param(put("lengths", [37]), id="one row too few"),
        pytest.param(put("lengths", [37, 20, 1]), id="one row too many"),
        pytest.param(put("lengths", [37, 21]), id="another length"),
        pytest.param(put("lengths", [37, -20]), id="a negative length"),
        pytest.param(put("lengths", [37, 20.0]), id="a length that is a float"),
        pytest.param(put("lengths", "37"), id="lengths that are a string"),
        pytest.param(put("starts", [0, 250]), id="beyond the engine's context"),
        pytest.param(put("starts", [0, 2**61]), id="a start far away"),
        pytest.param(put("starts", [0, None]), id="a start of null"),
        pytest.param(put("held", [2, 0]), id="another chunk than that of the last token"),
        pytest.param(put("held", [2**47, 1]), id="a chunk far away"),
        pytest.param(put("more", 1), id="a field too many"),
        pytest.param(lambda state, tensors: state.pop("held"), id="a field too few"),
        pytest.param(lambda state, tensors: tensors.pop("1.3.value"), id="a tensor too few"),
        pytest.param(lambda state, tensors: tensors.update({"2.0.key": tensors["1.0.key"]}), id="a tensor too many"),
        pytest.param(
            lambda state, tensors: tensors.update({"0.3.key": tensors["0.3.key"].astype(np.float16)}), id="a dtype"
        ),
        pytest.param(
            lambda state, tensors: tensors.update({"0.3.key": tensors["0.3.key"].reshape(2, 16, 37)}), id="a shape"
        ),
    ],
)
def test_a_forged_state_is_refused(engine: Engine, saved: Path, edit: Callable[[dict[str, Any], Tensors], Any]) -> None:
    forged(saved, edit)
    refusal(engine, saved)


def test_a_forgery_that_changes_nothing_is_a_session(engine: Engine, saved: Path) -> None:
    """Those above are refused for what they change."""
    forged(saved, lambda state, tensors: None)
    assert engine.load_session(saved).lengths.tolist() == [37, 20]


def test_a_place_that_cannot_be_written(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    for path in (tmp_path / "missing" / "s", tmp_path / "directory"):
        with pytest.raises(StorageError) as caught:
            engine.session().save(path)
        assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


def test_what_a_killed_process_of_the_same_number_left_is_in_nobodys_way(engine: Engine, saved: Path) -> None:
    saved.with_name(f".session.{os.getpid()}.partial").write_bytes(b"half of a session")
    session = engine.session()
    session.append(random_ids(5))
    session.save(saved)
    assert engine.load_session(saved).lengths.tolist() == [5]


def test_a_state_that_is_no_unicode(engine: Engine, saved: Path) -> None:
    tensors, metadata = load_file(saved), TensorFile(saved).metadata
    save_file(tensors, saved, metadata | {"state": "STATE!"})
    saved.write_bytes(saved.read_bytes().replace(b'"STATE!"', rb'"\ud800"'))
    refusal(engine, saved)


def test_a_full_disk_leaves_the_old_file(engine: Engine, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    session = engine.session()
    session.append(random_ids(5))
    with pytest.raises(StorageError, match="No space left"):
        session.save(saved)
    assert saved.read_bytes() == before and session.lengths.tolist() == [5]
    assert [path.name for path in saved.parent.iterdir()] == ["session"]
