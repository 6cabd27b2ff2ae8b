"""Builds killed at random moments, and sources replaced at random moments (tests/support/disturbed_builds.py)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from workshop import ROOT


def disturb(kills: int, swaps: int, *more: str) -> None:
    """In a process that has no threads yet, from which builds can be forked."""
    script = ROOT / "tests" / "support" / "disturbed_builds.py"
    words = [sys.executable, str(script), "--kills", str(kills), "--swaps", str(swaps), *more]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_handful() -> None:
    disturb(4, 4, "--cases", "float", "int4")


@pytest.mark.slow
def test_a_hundred_kills_and_fifty_replaced_sources() -> None:
    disturb(100, 50)
