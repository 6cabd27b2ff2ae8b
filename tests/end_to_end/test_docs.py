"""Every command and every Python example of the documentation runs, in the order in which a reader meets it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from warm_python import run_command, run_script

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
        if language == "python":
            code, output = run_script(text, tmp_path)
            assert code == 0, f"{document.name}: {text}: {output}"
        for command in _commands(text) if language == "sh" else ():
            code, output = run_command(command, tmp_path)
            assert code == 0, f"{document.name}: {command}: {output}"


def _commands(text: str) -> list[list[str]]:
    """Arguments of `l4export ...`; anything else in a shell block is a mistake of the document."""
    commands = [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]
    assert all(command[0] == "l4export" for command in commands), text
    return [command[1:] for command in commands]
