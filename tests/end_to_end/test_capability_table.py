"""The table of docs/guide/targets.md: what each target takes, tried cell by cell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from l4export.cli import main
from l4export.targets import CHECKPOINT_TARGETS, TARGETS
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


@pytest.mark.parametrize("name", TARGETS)
def test_the_table_is_that_of_the_target_objects(name: str) -> None:
    """All rows of one option. In a row of `--kv-layout static` a graph of more than one chunk is meant."""
    target = TARGETS[name]
    takes = {
        **{f"--dtype {dtype}": dtype in target.dtypes for dtype in ("bf16",)},
        **{f"--quant {kind}": kind in target.weight_kinds for kind in ("int8", "int4", "fp8")},
        **{f"--kv-layout {layout}": layout in target.kv_layouts for layout in ("static", "chunked", "concat")},
        **{f"--kv-dtype {dtype}": dtype in target.kv_dtypes for dtype in ("int8", "int4")},
        "--kv-dtype fp16": "fp16" in {*target.kv_dtypes, target.dtypes[0]},
        "--quant fp8 --activations fp8": "fp8" in target.activations,
    }
    if name == "ort-cuda":
        takes["--kv-layout static"] = False  # refused by `check_graph`, because attention needs a mask there
    assert {option: ROWS[option][name] for option in takes} == {
        option: "yes" if taken else "-" for option, taken in takes.items()
    }


def test_every_target_has_a_line() -> None:
    lines = [cells(line)[0] for line in TEXT.splitlines() if line.startswith("| `") and "--" not in line]
    assert [line.removesuffix(" (default)").strip("`") for line in lines] == [*TARGETS, *CHECKPOINT_TARGETS]
    assert lines[0].endswith("(default)")


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
