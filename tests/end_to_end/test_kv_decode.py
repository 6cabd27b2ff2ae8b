"""The benchmark of KV layouts, at a size that takes no time: its figures are those of sessions that were filled."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from workshop import LAYOUTS, Workshop

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kv_decode.py"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_context_is_measured(workshop: Workshop, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("kv_decode", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "kv_decode", script)
    spec.loader.exec_module(script)
    rows = list(script.measure(workshop.engine("scout", layout), [48, 200], steps=4))
    slots = {200: 3 * 16 + 200, 48: 3 * 16 + 48} if layout == "chunked" else {200: 800, 48: 192}
    assert [(row.context, row.kv_bytes) for row in rows] == [(n, 2 * 2 * 16 * 4 * slots[n]) for n in (48, 200)]
    assert all(0 < row.lowest_ms <= row.ms_per_token for row in rows)
