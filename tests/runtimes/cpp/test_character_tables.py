"""The tables of characters are those that their generators make: of the package `tokenizers`, and of Python itself."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import unicodedata
from pathlib import Path
from types import ModuleType

import pytest
from tokenizers import Regex, pre_tokenizers

CPP = Path(__file__).parents[3] / "runtimes/cpp"
TABLE = CPP / "src/text/character_classes.inc"


def _generator(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, CPP / f"tools/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _classes() -> list[int]:
    """The class of each code point, from the table."""
    numbers = [int(number) for number in re.findall(r"(\d+),", TABLE.read_text())]
    ends = [number >> 8 for number in numbers[1:]] + [0x110000]
    found: list[int] = []
    for number, end in zip(numbers, ends, strict=True):
        assert number >> 8 == len(found), "ranges do not rise"
        found += [number & 0xFF] * (end - len(found))
    return found


def test_some_characters() -> None:
    """Of every block some, by the package's own expressions: another version of Unicode would show."""
    table, generator = _classes(), _generator("character_classes")
    points = [point for point in [*range(0x500), *range(0, 0x110000, 37)] if not 0xD800 <= point < 0xE000]
    text = "".join(map(chr, points))
    for bit, expression in generator.BITS.items():
        others = "".join(
            piece for piece, _ in pre_tokenizers.Split(Regex(expression), "removed").pre_tokenize_str(text)
        )
        assert {ord(one) for one in others} == {point for point in points if not table[point] & bit}, expression


def test_every_letter_is_upper_or_lower() -> None:
    """Llama 4's pattern takes letters by these two: one that is neither would never end a word."""
    assert [point for point, bits in enumerate(_classes()) if bits & 1 and not bits & 24] == []


@pytest.mark.slow
def test_the_whole_table() -> None:
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        _generator("character_classes").main()
    assert written.getvalue() == TABLE.read_text()


def test_characters_as_python_knows_them() -> None:
    if unicodedata.unidata_version != "14.0.0":
        pytest.skip(f"this Python has Unicode {unicodedata.unidata_version}, and the table is of 14.0.0")
    assert (CPP / "src/chat/character_table.inc").read_text() == _generator("python_characters").table()
