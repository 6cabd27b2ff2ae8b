"""Every fuzz target over its corpus, over beginnings of its files and over copies with a changed byte, sanitized."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from native_library import SOURCE, run, sanitized_native

FUZZ = SOURCE / "tests/fuzz"
TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in FUZZ.glob("fuzz_*.cpp"))


@pytest.mark.sanitized
@pytest.mark.parametrize("target", TARGETS)
def test_a_corpus_runs_clean(target: str, tmp_path: Path) -> None:
    program = sanitized_native() / f"tests/fuzz_{target}"
    said = re.fullmatch(r"(\d+) files, (\d+) runs\n", run(program, FUZZ / "corpus" / target, cwd=tmp_path))
    assert said and 3 <= int(said[1]) < int(said[2])


def test_every_corpus_has_its_target() -> None:
    assert sorted(path.name for path in (FUZZ / "corpus").iterdir()) == TARGETS
