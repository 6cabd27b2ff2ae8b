"""The native runtime's table of characters, written from what Python itself knows of them.

python tests/support/native_characters.py runtimes/cpp/src/chat/character_table.hpp
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

POINTS = range(0x110000)
PROPERTIES: dict[str, Callable[[str], bool]] = {
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
    """The header's text, for the Unicode version of this Python."""
    lines = [
        f"// Characters as Python's str knows them, Unicode {unicodedata.unidata_version}.",
        "// Written by tests/support/native_characters.py.",
        "#pragma once",
        "",
        "#include <cstdint>",
        "",
        "namespace l4::chat {",
        "",
        *(f"constexpr std::uint16_t k{name.title()} = {1 << bit};" for bit, name in enumerate(PROPERTIES)),
        "",
        "struct CharacterRange {",
        "  std::uint32_t first, last;",
        "  std::uint16_t properties;",
        "};",
        "",
        "// Every `step`th character from `first` to `last` becomes the one `delta` further.",
        "struct CaseRange {",
        "  std::uint32_t first, last, step;",
        "  std::int32_t delta;",
        "};",
        "",
        "// A character that becomes several, 0 where there are fewer than three.",
        "struct LongCase {",
        "  std::uint32_t from, to[3];",
        "};",
        "",
        "// clang-format off",
        *_array("CharacterRange", "kCharacters", [f"{{{a:#x}, {b:#x}, {flags}}}" for a, b, flags in _ranges()]),
    ]
    for name, change in CASES.items():
        short, long = _changes(change)
        lines += _array(
            "CaseRange", f"k{name.title()}Ranges", [f"{{{a:#x}, {b:#x}, {s}, {d}}}" for a, b, s, d in short]
        )
        lines += _array("LongCase", f"k{name.title()}Long", [f"{{{c:#x}, {{{', '.join(to)}}}}}" for c, to in long])
    return "\n".join([*lines, "// clang-format on", "", "}  // namespace l4::chat", ""])


def _array(kind: str, name: str, items: list[str]) -> list[str]:
    rows = [", ".join(items[start : start + 5]) + "," for start in range(0, len(items), 5)]
    return [f"constexpr {kind} {name}[] = {{", *rows, "};"]


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
    Path(sys.argv[1]).write_text(table(), encoding="utf-8")
