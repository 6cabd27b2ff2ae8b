"""The arithmetic of caches of one chunk, against lists that say which token lies in which slot."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from l4export.runtimes.cache.chunks import Chunks


class Slots:
    """One row: what lies in each slot of its cache of one chunk, as (position, version of the text)."""

    def __init__(self, size: int, start: int) -> None:
        self.size, self.start = size, start
        self.slots: dict[int, tuple[int, int]] = {}
        self.text: list[int] = []

    def write(self, version: int) -> None:
        position = self.start + len(self.text)
        self.slots[min(position % self.size, position - self.start)] = (position, version)
        self.text.append(version)

    def needed(self, end: int) -> list[tuple[int, tuple[int, int]]]:
        """Slots and what must lie there for a token at `end` to see its chunk."""
        chunk = [p for p in range(max(end // self.size * self.size, self.start), end)]
        return [(i, (p, self.text[p - self.start])) for i, p in enumerate(chunk)]


@given(
    size=st.integers(1, 6),
    start=st.integers(0, 20),
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=30),
)
def test_rewinds_are_allowed_exactly_where_the_keys_are_there(
    size: int, start: int, steps: list[tuple[bool, int]]
) -> None:
    chunks, slots = Chunks(size, np.asarray([start])), Slots(size, start)
    for version, (forward, count) in enumerate(steps):
        end = start + len(slots.text)
        if forward:
            for position in range(end, end + count):
                chunks.write(0, position)
                slots.write(version)
            continue
        back = min(count, len(slots.text))
        there = all(slots.slots.get(slot) == token for slot, token in slots.needed(end - back))
        assert chunks.complete(0, end - back) == there
        if there:
            slots.text = slots.text[: len(slots.text) - back]
            assert chunks.used(0, end - back) >= len(slots.needed(end - back))


@given(size=st.integers(1, 6), end=st.integers(0, 40))
def test_room_ends_with_the_chunk(size: int, end: int) -> None:
    room = Chunks(size, np.asarray([0])).room(end)
    assert room >= 1 and (end + room) % size == 0 and (end + room - 1) // size == end // size


def test_without_a_size_there_is_one_chunk() -> None:
    chunks = Chunks(None, np.asarray([9_999_900]))
    chunks.write(0, 20_000_000)
    assert chunks.room(20_000_000) > 2**61 and chunks.complete(0, 9_999_950) and not chunks.loses(0, 10**7, 10**9)
