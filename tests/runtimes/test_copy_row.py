"""A row that becomes the copy of another one, of the same session or of another: it is that row from then on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4export.errors import InputError
from l4export.runtimes.cache.kv_cache import Arrays
from l4export.runtimes.session import Session
from workshop import LAYOUTS, Workshop, assert_close, random_ids

CHUNK = 16
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def assert_same_row(session: Session, row: int, other: Session, other_row: int) -> None:
    """Keys, values and all else, to the bit."""
    for mine, theirs in zip(session.tokens(row), other.tokens(other_row), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(session.token_ids[row], other.token_ids[other_row])
    states = session.state, other.state
    assert len({(int(s.lengths[r]), int(s.held[r]), s.images[r]) for s, r in zip(states, (row, other_row))}) == 1  # noqa: B905


@layouts
@pytest.mark.parametrize("length", [CHUNK, 37])
def test_a_copy_goes_its_own_way(workshop: Workshop, layout: str, length: int) -> None:
    """It takes the place of a longer and of a shorter row; nobody else notices."""
    ids = random_ids((3, 90), seed=length)
    ids[1, :length] = ids[0, :length]
    expected = workshop.reference("scout").logits(ids)
    session = workshop.engine("scout", layout).session(batch=3)
    session.append([ids[0, :length], ids[2, :50], ids[2, :20]])
    for row in (1, 2):
        session.copy_row(row, session, 0)
        assert_same_row(session, row, session, 0)
    logits = session.append([[], ids[1, length:], ids[0, length:]])
    assert_close(logits[1], expected[1, length:])
    assert_close(logits[2], expected[0, length:])
    assert_close(session.append([ids[0, length:], [], []])[0], expected[0, length:])


@layouts
def test_rows_of_another_session(workshop: Workshop, tmp_path: Path, layout: str) -> None:
    """Of another batch and capacity; saved and loaded it is still the same, and the source is as it was."""
    engine, ids = workshop.engine("scout", layout), random_ids((2, 60), seed=3)
    expected = workshop.reference("scout").logits(ids)
    source, session = engine.session(batch=2), engine.session(batch=3, capacity=70)
    source.append([ids[0, :45], ids[1, :31]])
    session.append([[1, 2, 3], [4], [5] * 40])
    session.copy_row(2, source, 0)
    session.copy_row(0, source, 1)
    source.append([[7], [8]])
    session.save(tmp_path / "session")
    for each in (session, engine.load_session(tmp_path / "session")):
        logits = each.append([ids[1, 31:], [], ids[0, 45:]])
        assert_close(logits[0], expected[1, 31:])
        assert_close(logits[2, :15], expected[0, 45:])
        assert each.lengths.tolist() == [60, 1, 60]


@layouts
def test_a_prefix_is_shared_by_copy_and_rewind(workshop: Workshop, layout: str) -> None:
    """In layout chunked only from a chunk's beginning, once the next chunk has begun."""
    ids = random_ids((2, 60), seed=5)
    ids[1, :40] = ids[0, :40]
    expected = workshop.reference("scout").logits(ids)
    session = workshop.engine("scout", layout).session(batch=2)
    session.append([ids[0, :55], [1]])
    session.copy_row(1, session, 0)
    at = 40
    if layout == "chunked":
        with pytest.raises(InputError, match="keys of its chunk are gone"):
            session.rewind([0, 15])
        at = 32
    session.rewind([0, 55 - at])
    assert_close(session.append([[], ids[1, at:]])[1], expected[1, at:])
    assert_close(session.append([ids[0, 55:], []])[0], expected[0, 55:])


@layouts
def test_a_copy_that_fails_changes_nothing(workshop: Workshop, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row's own keys had been written over."""
    session = workshop.engine("scout", layout).session(batch=2)
    session.append([random_ids(40), random_ids(23, seed=1)])
    before, put, calls = session.fork(), session._cache.put, 0

    def fails(row: int, tokens: Arrays) -> None:
        nonlocal calls
        calls += 1
        put(row, tokens)
        if calls == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(session._cache, "put", fails)
    with pytest.raises(KeyboardInterrupt):
        session.copy_row(1, session, 0)
    monkeypatch.undo()
    for row in range(2):
        assert_same_row(session, row, before, row)


@layouts
def test_an_undo_that_fails_too_is_told(workshop: Workshop, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = workshop.engine("scout", layout).session(batch=2)
    session.append([random_ids(40), random_ids(23, seed=1)])

    def fails(row: int, tokens: Arrays) -> None:
        raise RuntimeError("the GPU is gone")

    monkeypatch.setattr(session._cache, "put", fails)
    with pytest.raises(InputError, match=r"a call failed \(.*gone\) and could not be undone"):
        session.copy_row(1, session, 0)
    monkeypatch.undo()
    with pytest.raises(InputError, match="the session is unusable"):
        session.copy_row(1, session, 0)
    session.reset()
    session.append([[1], [2]])


def test_impossible_copies_leave_both_as_they_were(workshop: Workshop) -> None:
    engine = workshop.engine("scout", "chunked")
    session, source = engine.session(batch=2, capacity=30, start=[0, 5]), engine.session(batch=2)
    source.append([random_ids(31), [1]])
    refused: list[tuple[Any, Any, Any, str]] = [
        (2, source, 0, "row is 2: give a whole number, 0 to 1"),
        (0, source, -1, "source_row is -1"),
        (0, source, True, "source_row is True"),
        (0, "source", 0, "source is 'source': give a session of this engine"),
        (0, workshop.engine("scout", "static").session(), 0, "give a session of this engine"),
        (0, source, 0, "the source has 31 tokens, more than this session's capacity of 30"),
        (1, source, 1, "row 1 starts at position 5 and the source at 0"),
    ]
    for row, other, other_row, words in refused:
        with pytest.raises(InputError, match=words):
            session.copy_row(row, other, other_row)
    assert session.lengths.tolist() == [0, 0] and source.lengths.tolist() == [31, 1]
    source.close()
    with pytest.raises(InputError, match="the session is closed"):
        session.copy_row(0, source, 1)
