"""Sessions of both runtimes, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4export import runtimes
from l4export.errors import InputError
from l4export.runtimes.session import Session
from native_library import NativeError
from native_session import NativeEngine, NativeSession
from workshop import random_ids

__all__ = ["Twins", "conversation"]


class Twins:
    """A session of each runtime, to which the same is done: what they return must be the same, to the bit."""

    def __init__(self, python: Session, native: NativeSession) -> None:
        self.python, self.native = python, native

    @staticmethod
    def of(path: Path, rows: int = 1, capacity: int | None = None, starts: list[int] | None = None) -> Twins:
        python = runtimes.load(path, threads=1).session(rows, capacity, starts or 0)
        return Twins(python, NativeEngine(path).session(rows, capacity or 0, starts))

    def append(self, rows: Sequence[Sequence[int]], last_only: bool = False) -> np.ndarray:
        expected = self.python.append([list(row) for row in rows], last_only)
        got = self.native.append(rows, last_only)
        np.testing.assert_array_equal(got, expected)
        return got

    def both(self, call: Callable[[Any], Any]) -> None:
        """Something that may be refused: then by both, with the same words."""
        try:
            call(self.python)
        except InputError as error:
            with pytest.raises(NativeError) as caught:
                call(self.native)
            assert str(caught.value) == str(error)
        else:
            call(self.native)
        self.check()

    def check(self) -> None:
        """Everything that a session tells of itself."""
        rows = range(self.python.batch)
        told = [self.native.row(row) for row in rows]
        assert [row.length for row in told] == self.python.lengths.tolist()
        assert [row.start for row in told] == self.python.starts.tolist()
        assert [row.position for row in told] == self.python.positions.tolist()
        assert [self.native.token_ids(row) for row in rows] == [ids.tolist() for ids in self.python.token_ids]
        info = self.native.info
        assert (info.rows, info.capacity, info.kv_bytes) == (len(rows), self.python.capacity, self.python.kv_bytes)


def conversation(twins: Twins) -> None:
    """Two rows: ragged prompts over several chunks, steps of both and of one, a long piece, steps again."""
    ids = random_ids((2, 100), seed=1).tolist()
    twins.append([ids[0][:21], ids[1][:7]])
    twins.append([ids[0][21:22], ids[1][7:8]])
    twins.append([[], ids[1][8:9]])
    twins.append([ids[0][22:60], []], last_only=True)
    twins.append([ids[0][60:63], ids[1][9:40]])
    for at in range(3):
        twins.append([ids[0][63 + at : 64 + at], ids[1][40 + at : 41 + at]], last_only=True)
    twins.check()
