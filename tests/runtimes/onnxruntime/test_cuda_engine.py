"""An engine on CUDA, where there is none: the driver and the provider are `cuda_stand_ins`, the kernels a CPU's."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import cuda_stand_ins as stand_ins
from judged_engines import judged_engine
from l4export import runtimes
from l4export.errors import EnvironmentLacks, InputError
from l4export.runtimes.onnxruntime.engine import OnnxRuntimeEngine
from workshop import Workshop, copy_checkpoint, edit_config, random_ids

VOCAB = 256


@pytest.fixture(scope="module")
def built(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny Scout, chunks of 16, whose inputs have no defaults."""
    path = tmp_path_factory.mktemp("cuda") / "engine"
    judged_engine(workshop.checkpoint("scout"), path)
    return path


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> stand_ins.Machine:
    return stand_ins.install(monkeypatch)


@pytest.fixture
def expected(built: Path) -> Iterator[Callable[..., Any]]:
    """Sessions of the same engine on this machine's CPU, loaded before anything is replaced."""
    yield runtimes.load(built, threads=1, provider="cpu").session


def test_steps_are_recorded_once_and_repeated(built: Path, expected: Any, machine: stand_ins.Machine) -> None:
    """Prompts are run; steps are recorded once a session, at addresses that stay, whatever prompts come between."""
    engine, ids = runtimes.load(built, threads=1), random_ids(60)
    assert isinstance(engine, OnnxRuntimeEngine)
    assert engine.provider == "CUDAExecutionProvider on Stand-in (steps by CUDA graph)"
    session, other, on_cpu = engine.session(), engine.session(capacity=40), expected()
    for begin, end in [(0, 20), (20, 21), (21, 22), (22, 30), (30, 31), (31, 32), (32, 50), (50, 51)]:
        piece = ids[begin:end]
        np.testing.assert_array_equal(session.append(piece), on_cpu.append(piece))
    assert other.append(ids[:1]).shape == other.append(ids[1:2]).shape == (1, 1, VOCAB)
    steps = [number for number in machine.runs if number != -1]
    assert steps == [1] * 5 + [2] * 2
    assert session.append(ids[51:52], last_only=True).shape == (1, 1, VOCAB)
    assert machine.runs[-1] == 1, "one kind of step, whichever logits are asked for"


def test_rows_decode_in_one_call_wherever_they_are(built: Path, expected: Any, machine: stand_ins.Machine) -> None:
    """Rows of any lengths, one without a token; prompts of single rows are run without a recording."""
    session, on_cpu = runtimes.load(built, threads=1).session(batch=3), expected(batch=3)
    steps: list[Any] = [[random_ids(n, seed=n) for n in (20, 33, 1)], [[1], [2], [3]], [[4], [], [6]]]
    steps += [[random_ids(n, seed=n) for n in (0, 5, 1)], [[7], [8], [9]], [[1], [1], [1]]]
    for step in steps:
        before = len(machine.runs)
        np.testing.assert_array_equal(session.append(step), on_cpu.append(step))
        if max(map(len, step)) == 1:
            assert machine.runs[before:] == [1]
        else:
            assert set(machine.runs[before:]) == {-1}


def test_contexts_beyond_131072(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt in pieces over position 131072, and steps: float16 caches with all slots of the context."""
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    edit_config(checkpoint, max_position_embeddings=300_000)
    judged_engine(checkpoint, tmp_path / "e", max_context=140_000)
    on_cpu = runtimes.load(tmp_path / "e", threads=1, provider="cpu").session(start=131_060, capacity=100)
    stand_ins.install(monkeypatch)
    engine = runtimes.load(tmp_path / "e", threads=1)
    session = engine.session(start=131_060, capacity=100)
    for piece in (random_ids(40), [1], [2]):
        np.testing.assert_array_equal(session.append(piece), on_cpu.append(piece))
    assert engine.session().kv_bytes == (3 * 16 + 140_000) * 128


def test_what_is_as_it_was_is_not_sent_again(
    built: Path, machine: stand_ins.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step sends its id and its length, and fetches its logits."""
    session = runtimes.load(built, threads=1).session()
    session.append([1, 2, 3])
    session.append([4])
    sent: list[int] = []
    copy = machine.driver.cuMemcpyHtoD_v2
    monkeypatch.setattr(
        machine.driver, "cuMemcpyHtoD_v2", lambda to, source, size: sent.append(size.value) or copy(to, source, size)
    )
    session.append([5])
    session.append([5])
    assert sent == [8, 8, 8]  # id and length; then the length alone


@pytest.mark.parametrize("has_room", [True, False])
def test_prompts_of_several_rows_leave_keys_and_values_on_the_gpu(
    built: Path, machine: stand_ins.Machine, monkeypatch: pytest.MonkeyPatch, has_room: bool
) -> None:
    """Even those that write over a chunk; the copy of it is on the host only where the GPU has no room."""
    session = runtimes.load(built, threads=1).session(batch=2)
    session.append([random_ids(20), random_ids(5)], last_only=True)
    fetched: list[int] = []
    copy = machine.driver.cuMemcpyDtoH_v2
    monkeypatch.setattr(
        machine.driver, "cuMemcpyDtoH_v2", lambda to, at, size: fetched.append(size.value) or copy(to, at, size)
    )
    monkeypatch.setattr(machine.driver, "cuMemAlloc_v2", _limited(machine.driver, has_room))
    session.append([random_ids(20), random_ids(40)], last_only=True)
    logits = 4 * VOCAB
    assert (set(fetched) == {logits}) == has_room


def _limited(driver: stand_ins.Driver, has_room: bool) -> Any:
    """Allocation that refuses what is as large as a cache, if there is to be no room."""
    allocate = driver.cuMemAlloc_v2
    cache = 2 * 2 * 16 * 16 * 2  # rows, heads, slots, channels, bytes
    return lambda address, size: 2 if size.value == cache and not has_room else allocate(address, size)


def test_recordings_and_memory_go_with_their_session(built: Path, machine: stand_ins.Machine) -> None:
    engine = runtimes.load(built, threads=1)
    assert isinstance(engine, OnnxRuntimeEngine)
    session = engine.session()
    session.append([1])
    recorded: dict[int, Any] = engine.inference.recorded  # type: ignore[attr-defined]
    assert set(recorded) == {1} and machine.driver.memory
    del session
    gc.collect()
    assert not machine.driver.memory
    engine.session().append([1])
    assert set(recorded) == {2}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"refuses": "This session cannot use the CUDA Graph feature as requested"}, "ONNX Runtime refuses to record"),
        ({"records": "CUDA failure 901: operation failed due to a previous error"}, "RuntimeError: CUDA failure 901"),
        ({"on_host": {"logits_to_keep", "mask_start"}}, "mask_start is read on the host"),
    ],
)
def test_where_steps_cannot_be_recorded_they_are_run_and_the_engine_says_so(
    built: Path, expected: Any, machine: stand_ins.Machine, change: dict[str, Any], why: str
) -> None:
    vars(machine).update(change)
    engine, on_cpu = runtimes.load(built, threads=1), expected()
    session = engine.session()
    for piece in (random_ids(20), [1], [2], [3]):
        np.testing.assert_array_equal(session.append(piece), on_cpu.append(piece))
    assert f"(no CUDA graph: {why}" in engine.provider
    assert machine.runs[-1] == -1


def test_options(built: Path, machine: stand_ins.Machine) -> None:
    """Each has its reason in `cuda_session`; the names are ONNX Runtime's own."""
    runtimes.load(built, threads=1)
    provider, options = machine.options[0]
    assert provider["arena_extend_strategy"] == "kSameAsRequested" and provider["use_tf32"] == "0"
    assert provider["enable_cuda_graph"] == "1" and int(provider["external_data_loader_reading_threads"]) >= 1
    assert options.get_session_config_entry("session.use_device_allocator_for_initializers") == "1"


# Refusals ------------------------------------------------------------------------------------------------------------


def test_inputs_with_defaults_are_refused(built: Path, tmp_path: Path, machine: stand_ins.Machine) -> None:
    """On CUDA a call cannot override them: the numbers would be wrong."""
    path = Path(shutil.copytree(built, tmp_path / "e"))
    raw = json.loads((path / "manifest.json").read_text())
    for graph in raw["graphs"].values():
        for value in graph["inputs"]:
            value["optional"] |= value["name"] == "mask_start"
    (path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="mask_start has a default, which CUDA lets no call override"):
        runtimes.load(path, threads=1)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"domain": "com.microsoft", "op_type": "QMoE", "name": "/experts"}, "no kernel on CUDA for QMoE /experts"),
        ({"domain": "", "op_type": "RMSNormalization", "name": "/norm"}, "no kernel on CUDA for RMSNormalization"),
    ],
)
def test_an_operator_left_to_the_cpu_is_refused_by_name(
    built: Path, machine: stand_ins.Machine, node: dict[str, str], words: str
) -> None:
    machine.on_cpu = [{"domain": "", "op_type": "Shape", "name": "/shape"}]
    runtimes.load(built, threads=1)
    machine.on_cpu.append(node)
    with pytest.raises(EnvironmentLacks, match=words):
        runtimes.load(built, threads=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"capability": (7, 0)}, "Stand-in has compute capability 7.0, and the engine's operators begin with 7.5"),
        ({"version": 12080}, "driver supports CUDA 12.8, and the engine needs 13.0; install a newer driver"),
        ({"limit": 10**9}, r"needs 1\.1 GB of GPU memory for 0\.0 GB of weights .* has 1\.0 GB free of 17\.2 GB: end"),
    ],
)
def test_a_gpu_that_cannot_is_refused_before_loading(
    built: Path, machine: stand_ins.Machine, change: dict[str, Any], words: str
) -> None:
    vars(machine.driver).update(change)
    with pytest.raises(EnvironmentLacks, match=words):
        runtimes.load(built, threads=1)
    assert machine.options == []


def test_a_package_for_a_newer_cuda_than_the_drivers(
    built: Path, machine: stand_ins.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "cuda_version", "14.1")
    with pytest.raises(EnvironmentLacks, match=r"is built with CUDA 14.1, and the NVIDIA driver supports 13.0"):
        runtimes.load(built, threads=1)


def test_a_session_without_room_says_what_would_fit(built: Path, machine: stand_ins.Machine) -> None:
    """Tiny Scout: 128 bytes a token and layer; three layers of 16 slots, one of all."""
    engine = runtimes.load(built, threads=1)
    machine.driver.limit = 15_000
    with pytest.raises(
        InputError, match=r"96 tokens takes .* free: up to 69 tokens a row fit; give a smaller capacity"
    ):
        engine.session()
    machine.driver.limit = 1 << 34
    engine.session().append([1])


def test_out_of_memory_leaves_session_and_engine_as_they_were(
    built: Path, expected: Any, machine: stand_ins.Machine
) -> None:
    """In a step and in a prompt that writes over a chunk."""
    engine, on_cpu, ids = runtimes.load(built, threads=1), expected(), random_ids(70)
    session = engine.session()
    np.testing.assert_array_equal(session.append(ids[:20]), on_cpu.append(ids[:20]))
    for end in (21, 50):
        machine.out_of_memory = True
        with pytest.raises(InputError, match="refused the call: cuda has no memory left for it; feed shorter") as told:
            session.append(ids[20:end])
        assert "\n" not in str(told.value) and session.lengths.tolist() == [20]
        machine.out_of_memory = False
    for end in (21, 50):
        begin = int(session.lengths[0])
        np.testing.assert_array_equal(session.append(ids[begin:end]), on_cpu.append(ids[begin:end]))
    assert "steps by CUDA graph" in engine.provider
