"""JSON that is almost right: fields deleted, of other types, twice, huge, nested; text that is no JSON."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["Pairs", "Raw", "damaged_text", "dumps", "mutate_json", "nested", "places"]

Place = tuple[str | int, ...]


class Raw(str):
    """Text that stands in the JSON as it is."""


class Pairs(list[tuple[str, Any]]):
    """An object, key by key, so that a key can stand there twice."""


def dumps(value: Any) -> str:
    """The JSON of a value, `Raw` and `Pairs` among it."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs | dict):
        pairs = value.items() if isinstance(value, dict) else value
        return "{" + ", ".join(f"{json.dumps(name)}: {dumps(item)}" for name, item in pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(dumps, value)) + "]"
    return json.dumps(value)


def nested(depth: int, kind: str = "[") -> Raw:
    """Arrays or objects within each other."""
    return Raw("[" * depth + "]" * depth if kind == "[" else '{"a":' * depth + "1" + "}" * depth)


_NUMBERS = [0, -1, 1, 2, 3, 7, 64, 255, 1.0, 1.5, -0.0, 1e-30, 1e30, 2**31, 2**32 - 1, 2**53 + 1, 2**63, 2**64, 10**40]
_NO_NUMBERS = [Raw("1e400"), Raw("NaN"), Raw("-Infinity"), Raw("1" + "0" * 5000), Raw("01"), Raw("-")]
_TEXTS = ["", "x", "0", "true", "\ud800", "\0", "\x1b[31m", "a\nb", "\u202e", "é", "a" * 70_000, "{0}", "%s", "~"]
_PATHS = ["../../x", "/dev/zero", "/etc/passwd", "a/b", ".", "..", "C:\\x", "manifest.json", "x" * 300]
_OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], [0], [-1], [0] * 2000, {"x": {}}, {"": 0}]
_POOLS = [_NUMBERS, _NUMBERS, _NO_NUMBERS, _TEXTS, _PATHS, _OTHERS, _OTHERS]


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Where in a value anything stands; of a long array the first and the last few entries."""
    if place:
        yield place
    if isinstance(value, dict):
        for name, item in value.items():
            yield from places(item, (*place, name))
    elif isinstance(value, list) and not isinstance(value, Pairs):
        for index in sorted({*range(min(4, len(value))), *range(max(0, len(value) - 2), len(value))}):
            yield from places(value[index], (*place, index))


def mutate_json(value: Any, rng: random.Random, words: Sequence[Any] = ()) -> tuple[Any, str]:
    """A changed copy, and what was changed; `words` are values that mean something to whoever reads it."""
    value = copy.deepcopy(value)
    spots = list(places(value))
    if not spots:
        return _replacement(value, rng, words), "all of it"
    # First how deep, then where: else most changes would be to the items of the largest table.
    depth = rng.choice(sorted({len(spot) for spot in spots}))
    spot = rng.choice([spot for spot in spots if len(spot) == depth])
    *above, key = spot
    parent = value
    for step in above:
        parent = parent[step]
    told = _change(value, parent, key, rng, words)
    return value, f"{'.'.join(map(str, spot))[:100]}: {told}"


def _change(value: Any, parent: Any, key: Any, rng: random.Random, words: Sequence[Any]) -> str:
    """Change `parent[key]`, somewhere in `value`; says how."""
    old = parent[key]
    action = rng.randrange(12)
    if action == 0:
        del parent[key]
        return "deleted"
    if action == 1 and isinstance(parent, dict):
        parent[rng.choice([str(key) + " ", str(key).upper(), "", *_TEXTS[4:9], *_PATHS])] = parent.pop(key)
        return "renamed"
    if action == 2 and isinstance(old, dict) and old:
        twice = rng.choice(list(old.items()))
        parent[key] = Pairs([*old.items(), (twice[0], rng.choice([twice[1], None, 0]))])
        return f"{twice[0][:40]!r} twice"
    if action == 3 and isinstance(old, list) and not isinstance(old, Pairs):
        parent[key] = rng.choice([old[:-1], old[1:], [*old, *old], [*old, *old[:1]], old[::-1], [old], old * 50])
        return f"{len(parent[key])} entries"
    if action == 4:
        donor = rng.choice(list(places(value)))
        taken = value
        for step in donor:
            taken = taken[step]
        parent[key] = copy.deepcopy(taken)
        return f"the value of {'.'.join(map(str, donor))[:60]}"
    if action == 5:
        depth = rng.choice([3, 60, 500, 3000] if rng.random() < 0.9 else [100_000])
        parent[key] = nested(depth, rng.choice("[{"))
        return f"nested {depth} times"
    if action == 6 and isinstance(old, dict):
        old[rng.choice(["extra", *_TEXTS[:8]])] = rng.choice(rng.choice(_POOLS))
        return "one more field"
    parent[key] = _replacement(old, rng, words)
    return dumps(parent[key])[:80]


def _replacement(old: Any, rng: random.Random, words: Sequence[Any]) -> Any:
    """Another value, often one of the same type."""
    if isinstance(old, int | float) and not isinstance(old, bool) and rng.random() < 0.6:
        near = [old + 1, old - 1, old * 2, -old, old // 2 if isinstance(old, int) else old / 2, float(old), str(old)]
        return rng.choice([*near, *_NUMBERS])
    if isinstance(old, bool) and rng.random() < 0.5:
        return not old
    if words and rng.random() < 0.5:
        return rng.choice(words)
    return rng.choice(rng.choice(_POOLS))


def damaged_text(text: str, rng: random.Random) -> tuple[bytes, str]:
    """The bytes of a text file that no longer holds what it should."""
    data = text.encode(errors="surrogatepass")
    at = rng.randrange(len(data) + 1)
    flipped = bytearray(data or b" ")
    for _ in range(rng.choice([1, 3, 20])):
        flipped[rng.randrange(len(flipped))] = rng.randrange(256)
    ways = {
        "BOM": b"\xef\xbb\xbf" + data,
        "UTF-16": text.encode("utf-16", errors="surrogatepass"),
        "cut short": data[:at],
        "broken UTF-8": data[:at] + b"\xff\xc0\x80" + data[at:],
        "NUL": data[:at] + b"\0" + data[at:],
        "more after it": data + rng.choice([b"\n", b"  ", b"x", b"{}", b"\0" * 9]),
        "empty": b"",
        "bytes changed": bytes(flipped),
        "another type": rng.choice([b"[]", b"null", b"1", b'"x"', b"{}", b"[" * 100_000]),
    }
    told = rng.choice(list(ways))
    return ways[told], told
