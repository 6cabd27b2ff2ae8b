"""Writes the table of characters, as Python's str knows them, for src/chat/characters.cpp.

    python python_characters.py > ../src/chat/character_table.inc

Chat templates call methods of Python's str, so the table is of a Python's version of Unicode. The tokenizer's classes,
of character_classes.py, are of another version and of other properties. A test compares the table with Python 3.11.
"""

from __future__ import annotations

import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterator

POINTS = range(0x110000)
NEVER_CUT = "\N{NO-BREAK SPACE}"  # no place for the end of a line
PROPERTIES: dict[str, Callable[[str], bool]] = {  # in the order of their bits in src/chat/characters.hpp
    "alphabetic": str.isalpha,
    "decimal": str.isdecimal,
    "digit": str.isdigit,
    "numeric": str.isnumeric,
    "lower": str.islower,
    "upper": str.isupper,
    "title": lambda c: c.istitle() and not c.isupper(),
    "printable": str.isprintable,
    # what does not decide whether a sigma ends a word
    "ignorable": lambda c: ("A" + c + "Σ").lower().endswith("ς") and not (c + "Σ").lower().endswith("ς"),
}
CASES: dict[str, Callable[[str], str]] = {"upper": str.upper, "lower": str.lower, "title": str.title}


def table() -> str:
    """The table's text, for the Unicode version of this Python."""
    version = f"Unicode {unicodedata.unidata_version}"
    lines = [
        f"// Made by tools/python_characters.py: characters as Python's str knows them, {version}.",
        *_array("CharacterRange", "kCharacters", [f"{{{a:#x}, {b:#x}, {flags}}}" for a, b, flags in _ranges()]),
    ]
    for name, change in CASES.items():
        short, long = _changes(change)
        lines += _array(
            "CaseRange", f"k{name.title()}Ranges", [f"{{{a:#x}, {b:#x}, {s}, {d}}}" for a, b, s, d in short]
        )
        lines += _array("LongCase", f"k{name.title()}Long", [f"{{{c:#x}, {{{', '.join(to)}}}}}" for c, to in long])
    return "\n".join([*lines, ""])


def _array(kind: str, name: str, items: list[str]) -> list[str]:
    rows = textwrap.wrap(" ".join(f"{item.replace(' ', NEVER_CUT)}," for item in items), 118)
    return [f"constexpr {kind} {name}[] = {{", *(row.replace(NEVER_CUT, " ") for row in rows), "};"]


def _ranges() -> Iterator[tuple[int, int, int]]:
    """Runs of characters with the same properties, if they have any."""
    first, flags = 0, 0
    for point in [*POINTS, None]:
        found = -1 if point is None else sum(has(chr(point)) << bit for bit, has in enumerate(PROPERTIES.values()))
        if found != flags:
            if flags > 0:
                yield first, (len(POINTS) if point is None else point) - 1, flags
            first, flags = point or 0, found


def _changes(change: Callable[[str], str]) -> tuple[list[list[int]], list[tuple[int, list[str]]]]:
    short: list[list[int]] = []
    long: list[tuple[int, list[str]]] = []
    for point in POINTS:
        if 0xD800 <= point < 0xE000 or (to := change(chr(point))) == chr(point):
            continue
        if len(to) > 1:
            long.append((point, [f"{ord(c):#x}" for c in to.ljust(3, "\0")]))
            continue
        delta = ord(to) - point
        if short and short[-1][3] == delta:
            first, last, step, _ = short[-1]
            gap = point - last
            if gap in (1, 2) and (first == last or gap == step):
                short[-1][1:3] = [point, gap]
                continue
        short.append([point, point, 1, delta])
    return short, long


if __name__ == "__main__":
    sys.stdout.write(table())
