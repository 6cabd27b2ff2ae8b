"""Sessions that go back, are copied, saved and loaded: whatever one does, the logits are those of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from l4export.errors import InputError
from l4export.runtimes.cache.host_cache import HostCache
from l4export.runtimes.cache.kv_cache import Call
from l4export.runtimes.session import Session
from workshop import LAYOUTS, VARIANTS, Workshop, assert_close, random_ids

CHUNK, TOKENS = 16, 200  # twelve boundaries
layouts = pytest.mark.parametrize("layout", LAYOUTS)
variants = pytest.mark.parametrize("variant", [pytest.param(v, marks=pytest.mark.xdist_group(v)) for v in VARIANTS])


class Walk:
    """Three rows on their way through a text each, in steps of any size."""

    def __init__(self, workshop: Workshop, variant: str, layout: str, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.ids = random_ids((3, TOKENS), seed=7)
        self.expected = workshop.reference(variant).logits(self.ids)
        self.session = workshop.engine(variant, layout).session(batch=3)
        self.refused = 0

    def done(self) -> bool:
        return bool((self.session.lengths == TOKENS).all())

    def feed(self) -> None:
        """The next tokens of each row, sometimes none, sometimes one, sometimes over several boundaries."""
        most = int(self.rng.choice([1, 1, 6, 50]))
        at = self.session.lengths.copy()
        counts = np.minimum(self.rng.integers(0, most + 1, 3), TOKENS - at)
        if not counts.any():
            return
        logits = self.session.append([row[a : a + n] for row, a, n in zip(self.ids, at, counts, strict=True)])
        for row, count in enumerate(counts):
            if count:
                assert_close(logits[row, :count], self.expected[row, at[row] : at[row] + count])

    def stray(self) -> None:
        """Some other tokens, and back. Where the way back is lost, on with the copy made before."""
        before, at = self.session.fork(), self.session.lengths.copy()
        counts = np.minimum(self.rng.integers(0, int(self.rng.choice([2, 9, 40])), 3), 256 - at)
        if not counts.any():
            return
        self.session.append([self.rng.integers(0, 256, count) for count in counts])
        chunked = self.session.manifest.prefill_cut is not None
        lost = chunked and any(a % CHUNK and (a + n - 1) // CHUNK > a // CHUNK for a, n in zip(at, counts, strict=True))
        if lost:
            ends = self.session.lengths.copy()
            with pytest.raises(InputError, match="keys of its chunk are gone"):
                self.session.rewind(counts)
            assert (self.session.lengths == ends).all()
            self.session = before
            self.refused += 1
        else:
            self.session.rewind(counts)
        assert (self.session.lengths == at).all()


@variants
@layouts
def test_any_walk_through_a_text(workshop: Workshop, tmp_path: Path, variant: str, layout: str) -> None:
    walk = Walk(workshop, variant, layout, seed=VARIANTS.index(variant))
    while not walk.done():
        walk.feed()
        match walk.rng.integers(5):
            case 0:
                walk.session = walk.session.fork()
            case 1:
                walk.session.save(tmp_path / "session")
                walk.session = workshop.engine(variant, layout).load_session(tmp_path / "session")
            case _:
                walk.stray()
    assert (walk.refused > 0) == (walk.session.manifest.prefill_cut is not None)


def feed(session: Session, ids: np.ndarray, stop: int, expected: np.ndarray) -> None:
    """One row's tokens up to `stop`."""
    at = int(session.lengths[0])
    assert_close(session.append(ids[at:stop])[0], expected[at:stop])


@layouts
def test_a_shared_prefix(workshop: Workshop, layout: str) -> None:
    """Forks of one row go their own ways, and neither they nor the first session notice each other."""
    reference, engine = workshop.reference("scout"), workshop.engine("scout", layout)
    ids = random_ids((4, 90), seed=3)
    ids[:, :37] = ids[0, :37]
    expected = reference.logits(ids)
    first = engine.session()
    feed(first, ids[0], 37, expected[0])
    many = first.fork([0] * 3)
    assert_close(many.append(ids[1:, 37:60])[:, :23], expected[1:, 37:60])
    feed(first, ids[0], 90, expected[0])
    two = many.fork([2, 0])
    many.append([[1], [2], [3]])
    assert_close(two.append(ids[[3, 1], 60:]), expected[[3, 1], 60:])


@layouts
def test_ids_are_those_that_were_fed(workshop: Workshop, layout: str) -> None:
    """Also of rows that take several calls of one size, whose inputs are written in place."""
    session = workshop.engine("scout", layout).session(batch=2)
    session._piece = 8
    ids = [random_ids(50, seed=1), random_ids(33, seed=2)]
    session.append(ids)
    for fed, told in zip(ids, session.token_ids, strict=True):
        np.testing.assert_array_equal(fed, told)


@layouts
def test_rows_go_back_by_numbers_of_their_own(workshop: Workshop, layout: str) -> None:
    ids = random_ids((2, 60), seed=4)
    expected = workshop.reference("scout").logits(ids)
    session = workshop.engine("scout", layout).session(batch=2)
    session.append([ids[0, :45], ids[1, :31]])
    session.rewind([45 - 32, 3])  # row 0 to the beginning of its chunk
    assert session.lengths.tolist() == [32, 28]
    logits = session.append([ids[0, 32:50], ids[1, 28:60]])
    assert_close(logits[0, :18], expected[0, 32:50])
    assert_close(logits[1, :32], expected[1, 28:60])


def test_the_beginnings_of_chunks_can_be_reached_from_afar(workshop: Workshop) -> None:
    ids = random_ids(70)
    expected = workshop.reference("scout").logits(ids[None])[0]
    session = workshop.engine("scout", "chunked").session()
    feed(session, ids, 70, expected)
    with pytest.raises(InputError, match=r"row 0: .* position 20, .* go back to position 16 or 32 and"):
        session.rewind(50)
    session.rewind(70 - 16)
    feed(session, ids, 20, expected)
    session.rewind(20)
    feed(session, ids, 70, expected)


@layouts
@pytest.mark.parametrize("tokens", [-1, 31, [1], [1, 2, 3], [1, -1], [1, 21], [[1], [2, 3]], 1.5, "1"])
def test_impossible_rewinds_leave_the_session_as_it_was(workshop: Workshop, layout: str, tokens: object) -> None:
    ids = random_ids((2, 40))
    session = workshop.engine("scout", layout).session(batch=2)
    session.append([ids[0, :30], ids[1, :20]])
    with pytest.raises(InputError) as caught:
        session.rewind(tokens)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and session.lengths.tolist() == [30, 20]


@layouts
@pytest.mark.parametrize("rows", [[], [2], [-1], [0, 5], [0.5]])
def test_impossible_forks_are_refused(workshop: Workshop, layout: str, rows: list[int]) -> None:
    with pytest.raises(InputError, match="give rows of 0 to 1"):
        workshop.engine("scout", layout).session(batch=2).fork(rows)


@layouts
def test_an_append_that_fails_behind_a_boundary_is_undone(
    workshop: Workshop, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens of the chunk in which it began had been written over."""
    ids = random_ids(60)
    expected = workshop.reference("scout").logits(ids[None])[0]
    session = workshop.engine("scout", layout).session()
    session._piece = 8  # several calls in every layout
    feed(session, ids, 21, expected)
    run, calls = session._cache.run, 0

    def fails_in_the_end(call: Call) -> np.ndarray:
        nonlocal calls
        calls += 1
        logits = run(call)
        if calls == 4:
            raise KeyboardInterrupt
        return logits

    monkeypatch.setattr(session._cache, "run", fails_in_the_end)
    with pytest.raises(KeyboardInterrupt):
        session.append(random_ids(39, seed=9))
    monkeypatch.undo()
    assert session.lengths.tolist() == [21]
    session.rewind(2)
    feed(session, ids, 60, expected)


@variants
@layouts
def test_buffers_have_the_bytes_of_the_formula(workshop: Workshop, variant: str, layout: str) -> None:
    engine, capacity, batch, tokens = workshop.engine(variant, layout), 100, 2, 45
    config = engine.config
    slots = {
        "concat": [tokens] * 4,
        "static": [capacity] * 4,
        "chunked": [min(CHUNK, capacity) if chunked else capacity for chunked in config.chunked_layers],
    }[layout]
    session = engine.session(batch, capacity)
    session.append(random_ids((batch, tokens)))
    assert session.kv_bytes == sum(batch * 2 * config.num_key_value_heads * config.head_dim * 4 * n for n in slots)
    assert engine.session(batch, 7).kv_bytes <= 4 * batch * 2 * config.num_key_value_heads * config.head_dim * 4 * 7


def test_a_session_too_large_for_memory_is_refused_in_a_line(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(cache: HostCache, slots: object) -> None:
        raise MemoryError

    monkeypatch.setattr(HostCache, "new_arrays", too_much)
    with pytest.raises(InputError, match="give a smaller capacity or batch"):
        workshop.engine("scout", "chunked").session()
