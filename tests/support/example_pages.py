"""Pages of examples as their readers follow them: the commands of their shell blocks."""

from __future__ import annotations

import re
from pathlib import Path

from workshop import ROOT

__all__ = ["checkout", "commands", "packages"]


def commands(example: str) -> list[str]:
    """The ```console blocks of the page of an example, in order."""
    return re.findall(r"^```console\n(.*?)^```", _page(example), re.MULTILINE | re.DOTALL)


def packages(example: str) -> list[str]:
    """What the page says to install with apt-get."""
    return [name for found in re.findall(r"`apt-get install ([^`]+)`", _page(example)) for name in found.split()]


def _page(example: str) -> str:
    return (ROOT / "examples" / example / "README.md").read_text(encoding="utf-8")


def checkout(directory: Path, *parts: str) -> Path:
    """A directory that looks like the top of the repository, with these parts of it alone."""
    for part in parts:
        (directory / part).parent.mkdir(parents=True, exist_ok=True)
        (directory / part).symlink_to(ROOT / part)
    return directory
