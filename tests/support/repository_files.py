"""The texts of this repository: code, documentation and settings, without what is installed or built in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["repository_texts"]

ROOT = Path(__file__).parents[2]
SUFFIXES = {".cpp", ".h", ".hpp", ".inc", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yml"}
FOLDERS = ("docs", "examples", "l4export", "passes", "runtimes", "tests")


def repository_texts() -> Iterator[str]:
    """Each file's text, in the order of names. Links are not followed, so that none comes twice."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink():
                yield path.read_text()
