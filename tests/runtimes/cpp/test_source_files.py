"""The native library's sources: lines and files as long as Python's may be, and tables that say what made them."""

from __future__ import annotations

import re
from pathlib import Path

CPP = Path(__file__).parents[3] / "runtimes/cpp"
SOURCES = sorted(path for path in CPP.rglob("*") if path.suffix in {".h", ".hpp", ".cpp", ".inc", ".cmake", ".sh"})
SOURCES += sorted(CPP.rglob("CMakeLists.txt"))
TABLES = [path for path in SOURCES if path.suffix == ".inc"]
"""What tools have written."""

LINE = 120  # that of ruff, in pyproject.toml
FILE = 400


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_lines_are_not_too_long() -> None:
    assert SOURCES
    long = [f"{path}:{at}" for path in SOURCES for at, line in enumerate(_lines(path), 1) if len(line) > LINE]
    assert long == []


def test_files_are_not_too_long() -> None:
    assert [str(path) for path in SOURCES if path not in TABLES and len(_lines(path)) > FILE] == []


def test_tables_say_what_made_them() -> None:
    assert TABLES
    for path in TABLES:
        made = re.match(r"// Made by (tools/\w+\.py): .+", _lines(path)[0])
        assert made is not None, path
        assert (CPP / made[1]).exists()
