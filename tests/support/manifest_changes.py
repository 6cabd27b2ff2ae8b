"""Manifests with one field changed, each in several ways."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

__all__ = ["at", "changed", "places"]

Place = tuple[str | int, ...]

DELETED = object()
TOO_LARGE = "a number that no float holds"
REPLACEMENTS = (DELETED, None, [], {}, "x", "\ud800", -1, 1.5, True, 10**40, TOO_LARGE)


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Every field; of lists the first, the third and the last entry, which are of different kinds in inputs."""
    if place:
        yield place
    if isinstance(value, dict):
        for name, item in value.items():
            yield from places(item, (*place, name))
    elif isinstance(value, list):
        for index in sorted({0, 2, len(value) - 1} & set(range(len(value)))):
            yield from places(value[index], (*place, index))


def at(raw: Any, place: Place) -> Any:
    for key in place:
        raw = raw[key]
    return raw


def changed(raw: dict[str, Any], place: Place) -> Iterator[str]:
    """The texts of a manifest with other values at a place."""
    original = json.dumps(raw)
    for value in REPLACEMENTS:
        other = json.loads(original)
        parent = at(other, place[:-1])
        if value is DELETED:
            del parent[place[-1]]
        else:
            parent[place[-1]] = value
        text = json.dumps(other).replace(json.dumps(TOO_LARGE), "1e400")
        if text != original:
            yield text
