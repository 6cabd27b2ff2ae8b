"""Rows fed together against rows fed alone, for every engine that docs/guide/threads.md has a figure of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.quantization.policy import Policy, standard_policy
from l4export.runtimes.engine import Engine
from workshop import ROOT

PROMPTS = [37, 64, 5, 90, 17, 64, 1, 50]
"""Tokens of each."""
STEPS = 12


def in_float(kind: str) -> Policy:
    return Policy(standard_policy(kind).rules, accuracy_level=1)


ENGINES: dict[str, dict[str, Any]] = {
    "`ort-cpu`": {},
    "`ort-cpu`, `--quant int4` with `accuracy_level = 1`": {"policy": in_float("int4")},
    "`ort-cpu`, `--quant fp8`": {"policy": standard_policy("fp8")},
    "`cpu`, `--quant int4` with `accuracy_level = 1`": {"target": "cpu", "policy": in_float("int4")},
    "`cpu`, `--quant int8` with `accuracy_level = 1`": {"target": "cpu", "policy": in_float("int8")},
    "`onnx`": {"target": "onnx"},
    "`onnx`, `--quant int4`": {"target": "onnx", "policy": standard_policy("int4")},
    "`onnx`, `--quant int8`": {"target": "onnx", "policy": standard_policy("int8")},
    "`ort-cpu`, `--quant int4`": {"policy": standard_policy("int4")},
    "`ort-cpu`, `--quant int8`": {"policy": standard_policy("int8")},
    "`ort-cpu`, `--quant int8` with `accuracy_level = 1`": {"policy": in_float("int8")},
    "`cpu`, `--quant int4`": {"target": "cpu", "policy": standard_policy("int4")},
    "`cpu`, `--quant int8`": {"target": "cpu", "policy": standard_policy("int8")},
    "`ort-cpu`, `--dtype fp16`": {"dtype": "fp16"},
    "`ort-cpu`, `--kv-dtype int8`": {"kv_dtype": "int8"},
    "`ort-cpu`, `--kv-dtype int4`": {"kv_dtype": "int4"},
}

PAGE = (ROOT / "docs/guide/threads.md").read_text(encoding="utf-8")
WITHIN = {name: float(bound) for name, bound in re.findall(r"^\| (.*?) \| (\de-\d) \| .* \|$", PAGE, re.MULTILINE)}


def test_the_page_tells_of_these_engines() -> None:
    assert WITHIN.keys() == ENGINES.keys()


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("name", ENGINES)
def test_rows_together_are_rows_alone_as_far_as_the_page_says(name: str, tmp_path: Path) -> None:
    build(ROOT / "examples/kjv/model", tmp_path / "e", BuildOptions(max_context=128, **ENGINES[name]))
    engine = runtimes.load(tmp_path / "e", threads=1)
    assert engine.text is not None
    text = engine.text.encode((ROOT / "examples/kjv/held_out.txt").read_text(encoding="utf-8")[:20_000])
    rows = [text[500 * row : 500 * row + count + STEPS] for row, count in enumerate(PROMPTS)]
    alone = np.concatenate([fed(engine, [row]) for row in rows])
    together = fed(engine, rows)
    difference = np.abs(together - alone).max() / np.abs(alone).max()
    assert difference <= WITHIN[name]
    if WITHIN[name] <= 1e-5:
        assert (together.argmax(axis=-1) == alone.argmax(axis=-1)).all()


def fed(engine: Engine, rows: list[list[int]]) -> np.ndarray:
    """Logits [rows, 1 + STEPS, vocab]: of each prompt's last token, then of single tokens."""
    session = engine.session(len(rows))
    logits = [session.append([row[:-STEPS] for row in rows], last_only=True)]
    logits += [session.append([[row[at - STEPS]] for row in rows], last_only=True) for at in range(STEPS)]
    return np.concatenate(logits, axis=1)
