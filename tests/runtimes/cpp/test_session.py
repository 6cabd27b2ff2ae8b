"""Sessions of the native library: the numbers of the Python runtime, to the bit, and its refusals."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_twins import Twins, conversation

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.quantization.policy import standard_policy
from native_library import NativeError
from native_session import NativeEngine
from workshop import LAYOUTS, VARIANTS, Workshop, random_ids

BAD_INPUT, CANCELLED = 2, 130

layouts = pytest.mark.parametrize("layout", LAYOUTS)


@layouts
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_python_runtime(workshop: Workshop, variant: str, layout: str) -> None:
    conversation(Twins.of(workshop.engine_path(variant, layout), rows=2))


@layouts
@pytest.mark.parametrize("dtype", ["fp16", "int8", "int4"])
def test_with_every_kind_of_keys_and_values(workshop: Workshop, layout: str, dtype: str) -> None:
    conversation(Twins.of(workshop.engine_path("scout", layout, 256, dtype), rows=2))


@pytest.mark.parametrize("quant", ["int8", "int4"])
@pytest.mark.parametrize("layout", ["static", "chunked"])
def test_with_quantised_weights(workshop: Workshop, tmp_path: Path, layout: str, quant: str) -> None:
    options = BuildOptions(kv_layout=layout, max_context=128, policy=standard_policy(quant))
    build(workshop.checkpoint("scout"), tmp_path / "engine", options)
    conversation(Twins.of(tmp_path / "engine", rows=2))


@layouts
def test_rows_that_start_elsewhere(workshop: Workshop, layout: str) -> None:
    conversation(Twins.of(workshop.engine_path("maverick", layout), rows=2, starts=[5, 21], capacity=80))


@layouts
def test_a_prompt_longer_than_one_call_takes(workshop: Workshop, layout: str) -> None:
    ids = random_ids((2, 1100), seed=4).tolist()
    path = workshop.engine_path("scout", layout, 1200)
    Twins.of(path).append(ids[:1])
    twins = Twins.of(path, rows=2)
    twins.append([ids[0], ids[1][:700]])
    twins.append([ids[0][:1], ids[1][:1]], last_only=True)


@layouts
def test_a_prompt_cut_at_every_position(workshop: Workshop, layout: str) -> None:
    path, ids = workshop.engine_path("scout", layout), random_ids(35, seed=2).tolist()
    python, native = runtimes.load(path, threads=1), NativeEngine(path)
    for cut in range(1, len(ids)):
        twins = Twins(python.session(), native.session())
        twins.append([ids[:cut]])
        twins.append([ids[cut:]])


@layouts
def test_what_is_refused_leaves_the_session_as_it_was(workshop: Workshop, layout: str) -> None:
    twins = Twins.of(workshop.engine_path("scout", layout), rows=2, capacity=60)
    ids = random_ids((2, 60), seed=3).tolist()
    twins.append([ids[0][:40], ids[1][:20]])
    for bad in ([[256], [1]], [[1], [-1]], [[], []], [ids[0][:21], []]):
        twins.both(lambda session, bad=bad: session.append(bad))
    for tokens in ([41, 0], [-1, 0], [9, 5], [8, 4], [32, 16]):
        twins.both(lambda session, tokens=tokens: session.rewind(tokens))
    free = [60 - length for length in twins.native.lengths]
    assert max(free) > 40
    twins.append([row[:count] for row, count in zip(ids, free, strict=True)])


def test_more_tokens_than_there_are_positions(workshop: Workshop) -> None:
    twins = Twins.of(workshop.engine_path("scout", "static"), starts=[250], capacity=20)
    twins.both(lambda session: session.append([random_ids(7).tolist()]))
    twins.append([random_ids(6).tolist()])
    twins.both(lambda session: session.append([[1]]))


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_sequence_of_calls(workshop: Workshop, data: st.DataObject) -> None:
    """Appends, rewinds and resets in any order give the numbers and the refusals of the Python runtime."""
    layout = data.draw(st.sampled_from(LAYOUTS))
    path = workshop.engine_path(data.draw(st.sampled_from(["scout", "maverick"])), layout)
    twins = Twins.of(path, rows=2, capacity=70, starts=data.draw(st.sampled_from([[0, 0], [3, 17]])))
    counts = st.one_of(st.integers(0, 3), st.integers(0, 40))
    for seed in range(data.draw(st.integers(1, 6))):
        pair = [data.draw(counts), data.draw(counts)]
        match data.draw(st.sampled_from(["append", "append", "last", "rewind", "reset"])):
            case "rewind":
                twins.both(lambda session, pair=pair: session.rewind(pair))
            case "reset":
                twins.both(lambda session: session.reset())
            case kind:
                ids = [random_ids(count, seed=seed + row).tolist() for row, count in enumerate(pair)]
                room = (70 - twins.python.lengths).tolist()
                if any(pair) and all(count <= free for count, free in zip(pair, room, strict=True)):
                    twins.append(ids, kind == "last")
                else:
                    twins.both(lambda session, ids=ids: session.append(ids))
    twins.check()


@layouts
def test_rewound_rows_go_on_as_if_nothing_had_been_said(workshop: Workshop, layout: str) -> None:
    twins = Twins.of(workshop.engine_path("mobile", layout), rows=2)
    ids = random_ids((2, 60), seed=6).tolist()
    twins.append([ids[0][:40], ids[1][:33]])
    twins.both(lambda session: session.rewind([8, 0]))
    twins.append([ids[1][:9], ids[0][:2]])
    twins.native.rewind_row(1, 35)
    twins.python.rewind([0, 35])
    twins.append([ids[0][:1], ids[1][:20]])
    twins.check()


@layouts
def test_a_fork_continues_alone(workshop: Workshop, layout: str) -> None:
    twins = Twins.of(workshop.engine_path("scout", layout), rows=2)
    ids = random_ids((2, 60), seed=7).tolist()
    twins.append([ids[0][:30], ids[1][:20]])
    fork = Twins(twins.python.fork([1, 0, 1]), twins.native.fork([1, 0, 1]))
    fork.check()
    fork.append([ids[0][:5], ids[1][:3], []])
    twins.append([ids[0][30:32], ids[1][20:40]])
    whole = Twins(twins.python.fork(), twins.native.fork())
    whole.append([ids[0][:1], ids[1][:1]])
    for rows in ([2], [-1]):
        with pytest.raises(NativeError, match="give a whole number, 0 to 1"):
            twins.native.fork(rows)


@layouts
def test_a_row_becomes_the_copy_of_another(workshop: Workshop, layout: str) -> None:
    """Within a session and from another one; the numbers are those of a row that was fed the tokens itself."""
    engine = NativeEngine(workshop.engine_path("scout", layout))
    ids = random_ids((2, 60), seed=8).tolist()
    source, target, expected = engine.session(2, 50), engine.session(3), engine.session(3)
    source.append([ids[0][:37], ids[1][:21]])
    target.append([[1] * 40, [2] * 3, [3] * 50])
    expected.append([[1] * 40, [2] * 3, [3] * 50])
    target.copy_row(1, source, 0)
    target.copy_row(2, target, 1)
    expected.reset()
    expected.append([[1] * 40])
    for row in (1, 2):
        assert target.token_ids(row) == ids[0][:37]
        expected.append([[]] * row + [ids[0][:37]])
    got, due = target.append([[4], [5], [6]]), expected.append([[4], [5], [6]])
    np.testing.assert_allclose(got, due, rtol=0, atol=1e-5 * np.abs(due).max())
    assert source.lengths == [37, 21]
    small = engine.session(1, 20)
    with pytest.raises(NativeError, match="more than this session's capacity of 20"):
        small.copy_row(0, source, 0)
    with pytest.raises(NativeError, match="copy rows of one start"):
        engine.session(1, starts=[3]).copy_row(0, source, 0)
    other = NativeEngine(workshop.engine_path("maverick", layout)).session()
    with pytest.raises(NativeError, match="give a session of this engine"):
        other.copy_row(0, source, 0)


@layouts
def test_saved_by_one_runtime_and_loaded_by_the_other(workshop: Workshop, tmp_path: Path, layout: str) -> None:
    path = workshop.engine_path("scout", layout)
    python, native = runtimes.load(path, threads=1), NativeEngine(path)
    twins = Twins(python.session(2), native.session(2))
    ids = random_ids((2, 60), seed=9).tolist()
    twins.append([ids[0][:40], ids[1][:5]])
    twins.python.save(tmp_path / "python")
    twins.native.save(tmp_path / "native")
    assert (tmp_path / "python").read_bytes() == (tmp_path / "native").read_bytes()
    crossed = Twins(python.load_session(tmp_path / "native"), native.load_session(tmp_path / "python"))
    crossed.check()
    crossed.append([ids[0][40:], ids[1][5:9]])


@layouts
def test_a_cancelled_prompt_leaves_the_session_as_it_was(workshop: Workshop, layout: str) -> None:
    path, ids = workshop.engine_path("scout", layout, 2048), random_ids(2000, seed=5).tolist()
    twins = Twins.of(path)
    twins.append([ids[:10]])
    twins.native.cancel()  # nothing runs: nothing happens
    cancelled = 0
    for _ in range(40):
        stopper = threading.Thread(target=lambda: (time.sleep(0.01), twins.native.cancel()))
        stopper.start()
        try:
            twins.native.append([ids[10:]])
            twins.native.rewind([len(ids) - 10]) if layout != "chunked" else twins.native.reset()
            if layout == "chunked":
                twins.native.append([ids[:10]])
        except NativeError as error:
            assert error.status == CANCELLED
            cancelled += 1
        stopper.join()
        assert twins.native.lengths == [10]
        if cancelled == 3:
            break
    assert cancelled
    twins.append([ids[10:60]])


def test_a_second_caller_is_refused(workshop: Workshop) -> None:
    path, ids = workshop.engine_path("scout", "static", 2048), random_ids(2000, seed=5).tolist()
    session = NativeEngine(path).session()
    seen: list[np.ndarray] = []

    def append() -> None:
        while not seen:
            with contextlib.suppress(NativeError):  # the other call may be the first one
                seen.append(session.append([ids]))

    runner = threading.Thread(target=append)
    runner.start()
    refused = ""
    while runner.is_alive():
        try:
            session.rewind([0])
        except NativeError as error:
            refused = str(error)
    runner.join()
    assert refused == (
        "the session is in use: append runs in another thread; use a session for each thread, or wait for that call to "
        "end"
    )
    assert seen[0].shape == (1, 2000, 256)


def test_two_sessions_in_two_threads(workshop: Workshop) -> None:
    engine = NativeEngine(workshop.engine_path("scout", "chunked"))
    ids = [random_ids(200, seed=seed).tolist() for seed in (1, 2)]
    alone = [engine.session().append([row]) for row in ids]
    together: dict[int, list[np.ndarray]] = {0: [], 1: []}

    def feed(which: int) -> None:
        for _ in range(5):
            together[which].append(engine.session().append([ids[which]]))

    threads = [threading.Thread(target=feed, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which, logits in together.items():
        assert len(logits) == 5
        for each in logits:
            np.testing.assert_array_equal(each, alone[which])


def test_a_session_outlives_its_engine(workshop: Workshop) -> None:
    engine = NativeEngine(workshop.engine_path("scout", "static"))
    session = engine.session()
    expected = engine.session().append([[1, 2, 3]])
    del engine
    np.testing.assert_array_equal(session.append([[1, 2, 3]]), expected)


def test_numbers_out_of_range(workshop: Workshop) -> None:
    engine = NativeEngine(workshop.engine_path("scout", "static"))
    for rows, capacity, starts, why in (
        (0, 0, None, "rows is 0: give a whole number, 1 to 1048576"),
        (1, 257, None, "capacity is 257: this engine was built for 1 to 256 tokens"),
        (1, -1, None, "capacity is -1"),
        (1, 0, [256], "start is 256: this engine has positions 0 to 255"),
    ):
        with pytest.raises(NativeError, match=why.replace("(", "\\(")) as caught:
            engine.session(rows, capacity, starts)
        assert caught.value.status == BAD_INPUT


def test_more_memory_than_there_is(workshop: Workshop) -> None:
    engine = NativeEngine(workshop.engine_path("scout", "static", 4096))
    with pytest.raises(NativeError, match="no memory for 1048576 x 4096 tokens of keys and values"):
        engine.session(1 << 20)
