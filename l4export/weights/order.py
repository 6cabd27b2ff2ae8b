"""The order in which units are done: that of the checkpoint's files, so that these are read once, from front to back.

A file is hashed from its beginning, and what has been hashed should be used while it is still in memory. So the units
of a file are done in the order of what they read. Only one worker at a time fetches (and hashes) what its unit reads of
a file. Others convert what they have fetched before, or begin with the next file: so there are as many files in flight
as are needed to keep all workers busy, and no more.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from l4export.storage.opened_file import OpenedFile
from l4export.weights.evaluation import Evaluation, leaves
from l4export.weights.placement import Unit
from l4export.weights.recipes import Source

__all__ = ["UnitQueue"]

_Place = tuple[OpenedFile, int, int]


@dataclass
class _Lane:
    """The units that read one file, each with about how far it reads; `file` is None for those that read none."""

    file: OpenedFile | None
    units: deque[tuple[int, Unit]] = field(default_factory=deque)
    fetching: bool = False


class UnitQueue:
    """Units to be done, which any thread may take. A unit that reads several files counts for the first of them."""

    def __init__(self, work: Sequence[Unit]) -> None:
        self._lock = threading.Lock()
        lanes: dict[int, _Lane] = {}
        places: dict[int, list[_Place]] = {}  # by evaluation: many units have one in common
        for unit in work:
            found = places.setdefault(id(unit.evaluation), _places(unit.evaluation))
            file = found[0][0] if found else None
            lane = lanes.setdefault(id(file), _Lane(file))
            lane.units.append((_end(unit, [place for place in found if place[0] is file]), unit))
        for lane in lanes.values():
            lane.units = deque(sorted(lane.units, key=lambda entry: (entry[0], entry[1].number)))
        self._lanes = list(lanes.values())

    @contextlib.contextmanager
    def _next(self) -> Iterator[tuple[OpenedFile | None, int, Unit]]:
        """The next unit, and how far it reads which file, of the first file that nobody else is fetching from."""
        with self._lock:
            self._lanes = [lane for lane in self._lanes if lane.units]
            lane = next((lane for lane in self._lanes if not lane.fetching), self._lanes[0])
            end, unit = lane.units.popleft()
            lane.fetching = lane.file is not None
        try:
            yield lane.file, end, unit
        finally:
            lane.fetching = False

    def take(self) -> Unit:
        """The next unit, when what it reads is at hand; raises what `OpenedFile.announce` does."""
        with self._next() as (file, end, unit):
            if file:
                file.announce(end)
        return unit


def _places(evaluation: Evaluation) -> list[_Place]:
    """Where the tensors lie that it is made of."""
    recipes = [leaf for output in evaluation.outputs[:1] for leaf in leaves(output)]
    return [leaf.data.place for leaf in recipes if isinstance(leaf, Source) and leaf.data.place]


def _end(unit: Unit, places: Sequence[_Place]) -> int:
    """How far in the file a unit reads, as if all tensors had the axes of the evaluation.

    That is so for most: experts come first in every layout, and rows where they are kept. For others it is an estimate,
    which decides about nothing but the order and the time of reading.
    """
    lead, last = unit.evaluation.lead, 0
    for cut, length in zip(unit.region, lead, strict=True):
        last = last * length + cut.stop - 1
    share = (last + 1) / math.prod(lead)
    return max((start + math.ceil(share * (stop - start)) for _, start, stop in places), default=0)
