"""Where there is no GPU the tests are skipped, and it is said what is missing. Rows are gathered into a table."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_checks import Row, missing_gpu

RESULTS = Path(os.environ.get("GPU_RESULTS", "gpu-results.json"))


@pytest.fixture(autouse=True)
def _needs_a_gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and (missing := missing_gpu()):
        pytest.skip(missing)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """Takes a row for the table and the file."""

    def add(row: Row) -> None:
        request.node.user_properties.append(("row", row))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line for each row of this run and of those before; the JSON file has everything.

    Rows of other processes come with their reports.
    """
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    rows = [row for report in reports if report.when == "call" for name, row in report.user_properties if name == "row"]
    if not rows or hasattr(terminalreporter.config, "workerinput"):  # the process that started the others has all rows
        return
    rows = [*(json.loads(RESULTS.read_text()) if RESULTS.exists() else []), *rows]
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    terminalreporter.section(f"on the GPU (all figures: {RESULTS})")
    for row in rows:
        figures = (f"{name} {value:.4g}" for name, value in row.items() if isinstance(value, float))
        terminalreporter.line(f"{row['check']:18} {row['engine']:26} {', '.join(figures)}")
