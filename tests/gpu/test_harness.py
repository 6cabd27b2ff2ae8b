"""That the script of `make test-gpu` itself runs: the same functions on a CPU, on the smallest of everything."""

from __future__ import annotations

from pathlib import Path

import pytest

import cuda_stand_ins as stand_ins
from gpu_checks import image_row, parity_row, sparse_engine, speed_row, tower_engine, tower_row, transformers_row


def test_parity_rows(tmp_path: Path) -> None:
    row = parity_row(tmp_path, "guard", "fp16", "static", "cpu", decode=5)
    assert row["passed"] and row["executed on"] == "CPUExecutionProvider instead of CUDAExecutionProvider"
    assert 0 < row["prefill difference"] < 2e-2 and row["failures"] == []


def test_speed_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = sparse_engine(tmp_path, "tiny", 2, 64)
    stand_ins.install(monkeypatch)
    row = speed_row(engine, 10, 3)
    assert row["gpu"]["steps"] == "steps by CUDA graph" and row["gpu"]["used_bytes"] <= row["formula_bytes"]


def test_image_rows(tmp_path: Path) -> None:
    row = image_row(tmp_path, "guard", "fp16", "cpu", decode=3)
    assert row["passed"] and 0 < row["feature difference"] < 2e-2


def test_tower_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tower_engine(tmp_path, "tiny", 64)
    stand_ins.install(monkeypatch)
    row = tower_row(engine, 2, repeats=2)
    assert row["seconds"] > 0 and "CUDAExecutionProvider" in row["of"]


def test_rows_of_transformers(wide_scout: Path) -> None:
    row = transformers_row(wide_scout, 4, 10, 3, "cpu")
    assert row["prefill_tokens_per_second"] > 0 and row["decode_tokens_per_second"] > 0
