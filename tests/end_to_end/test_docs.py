"""Every command and every Python example of the documentation runs, in the order in which a reader meets it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from workshop import ROOT

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_run(document: Path, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    examples = BLOCK.findall(document.read_text(encoding="utf-8"))
    if document.parent.name == "reference":  # its pages speak of an engine that the reader has
        examples.insert(0, ("sh", "l4export sample scout --variant scout\nl4export build scout -o engine\n"))
    for language, text in examples:
        commands = [[sys.executable, "-c", text]] if language == "python" else _commands(text)
        for command in commands:
            done = subprocess.run(
                command,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "OMP_NUM_THREADS": "1"},  # tests run side by side: threads wait for each other
            )
            assert done.returncode == 0, f"{document.name}: {command}: {done.stderr}"


def _commands(text: str) -> list[list[str]]:
    """Lines of `l4export ...`; anything else in a shell block is a mistake of the document."""
    commands = [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]
    assert all(command[0] == "l4export" for command in commands), text
    return [[sys.executable, "-m", "l4export", *command[1:]] for command in commands]
