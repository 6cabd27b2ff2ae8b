"""Writes a directory of the conformance set: an engine, and the cases for it; see README.md."""

from __future__ import annotations

import json
from pathlib import Path

from cases import cases_of, write_pictures

from engines import EngineKind, build_engine
from l4export.engine.manifest import load_manifest

__all__ = ["write_cases"]


def write_cases(kind: EngineKind, root: Path) -> Path:
    """The directory below `root` with `engine`, `pictures.safetensors`, a file of each case, and `cases.json`."""
    directory = root / f"cases-{kind}"
    directory.mkdir()
    engine = build_engine(kind, root)
    (directory / "engine").symlink_to(engine)
    write_pictures(directory / "pictures.safetensors")
    cases = cases_of(load_manifest(engine), kind.sees)
    for name, calls in cases.items():
        (directory / f"{name}.json").write_text(json.dumps(calls, ensure_ascii=False, indent=1) + "\n")
    (directory / "cases.json").write_text(json.dumps([f"{name}.json" for name in cases]) + "\n")
    return directory
