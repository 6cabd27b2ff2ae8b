"""Compares what two runtimes gave for the cases of the conformance set; see README.md."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

__all__ = ["differences"]

TOLERANCE = 1e-5
"""Of logits, relative to the largest; and of log probabilities."""


def differences(cases: Path, expected: Path, found: Path) -> Iterator[str]:
    """One line for each call whose results differ."""
    for path in json.loads((cases / "cases.json").read_text()):
        calls = json.loads((cases / path).read_text())
        results = [json.loads((place / path).read_text()) for place in (expected, found)]
        arrays = [load_file((place / path).with_suffix(".safetensors")) for place in (expected, found)]
        if len(results[1]) != len(calls):
            yield f"{path}: {len(results[1])} results of {len(calls)} calls"
        for number, (call, due, got) in enumerate(zip(calls, *results, strict=False)):
            what = [*_told(due, got), *_array(*(of_case.get(str(number)) for of_case in arrays))]
            yield from (f"{path}: call {number}, {call['call']}: {problem}" for problem in what)


def _told(due: dict[str, Any], got: dict[str, Any]) -> Iterator[str]:
    if due["status"] != got["status"]:
        yield f"status {got['status']}, not {due['status']} ({got.get('message')} / {due.get('message')})"
        return
    for name in (due.keys() | got.keys()) - {"message"}:
        if not _alike(due.get(name), got.get(name)):
            yield f"{name} is {str(got.get(name))[:200]}, not {str(due.get(name))[:200]}"


def _alike(due: Any, got: Any) -> bool:
    """Equal, but for the rounding of log probabilities."""
    if isinstance(due, float) and isinstance(got, float):
        return math.isclose(due, got, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if isinstance(due, list) and isinstance(got, list):
        return len(due) == len(got) and all(map(_alike, due, got))
    if isinstance(due, dict) and isinstance(got, dict):
        return due.keys() == got.keys() and all(_alike(due[name], got[name]) for name in due)
    return bool(due == got)


def _array(due: np.ndarray | None, got: np.ndarray | None) -> Iterator[str]:
    if due is None or got is None:
        if due is not got:
            yield "an array is missing" if got is None else "an array that nobody expects"
    elif due.shape != got.shape:
        yield f"an array of shape {got.shape}, not {due.shape}"
    elif not np.array_equal(np.isnan(due), np.isnan(got)):
        yield "other entries are NaN"
    elif due.size:
        worst, most = np.nanmax(np.abs(due - got), initial=0), np.nanmax(np.abs(due), initial=0)
        if worst > TOLERANCE * most:
            yield f"logits differ by {worst:.3g}, of {most:.3g}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("cases", "expected", "found"):
        parser.add_argument(name, type=Path)
    lines = list(differences(**vars(parser.parse_args())))
    print("\n".join(lines) or "no difference")
    sys.exit(bool(lines))
