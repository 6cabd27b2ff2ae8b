"""The table of docs/guide/targets.md: what each target takes, tried cell by cell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from l4export.cli import main
from l4export.compiler.pipeline import TARGETS
from workshop import ROOT

TEXT = (ROOT / "docs/guide/targets.md").read_text(encoding="utf-8")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def table() -> dict[str, dict[str, str]]:
    """Options -> target -> cell; a row may hold several options that are alike."""
    found: dict[str, dict[str, str]] = {}
    for named, *said in map(cells, TEXT.splitlines()):
        if said and set(said) <= {"yes", "-"} and len(said) == len(TARGETS):
            found |= {options: dict(zip(TARGETS, said, strict=True)) for options in re.findall("`(--[^`]+)`", named)}
    return found


ROWS = table()


def test_the_table_is_read() -> None:
    assert f"| options of `build` | {' | '.join(f'`{target}`' for target in TARGETS)} |" in TEXT
    assert len(ROWS) == 18 and {"yes", "-"} == {cell for said in ROWS.values() for cell in said.values()}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("options", ROWS)
def test_a_target_takes_what_the_table_says(
    wide_scout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, target: str
) -> None:
    arguments = ["build", str(wide_scout), "-o", str(tmp_path / "e"), "--layers", "2:4", "--dry-run"]
    arguments += ["--kv-layout", "chunked"] if target == "ort-cuda" else []
    arguments += ["--target", target, *options.split()]  # of an option that is there twice the last counts
    arguments += ["--compute-capability", "8.9"] if target == "tensorrt-rtx" else []
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr()
    assert ended.value.code == {"yes": 0, "-": 2}[ROWS[options][target]], said.err
