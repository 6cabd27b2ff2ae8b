"""The lines that tell how far a build is, where no terminal shows a bar."""

from __future__ import annotations

import pytest

from l4export.cli import byte_progress as module

GB = 10**9


def test_rate_and_time_left_count_from_the_first_call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A calibration before is none of writing; what was there before is done, but was not written now."""
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with module.byte_progress(quiet=False) as advance:
        assert advance is not None
        now = 200.0
        advance(4 * GB, 10 * GB)
        now = 209.0
        advance(5 * GB, 10 * GB)
        assert capsys.readouterr().err == ""
        now = 210.0
        advance(6 * GB, 10 * GB)
        assert capsys.readouterr().err == "6.00 of 10.00 GB, 0.20 GB/s, 20 s left\n"
        now = 219.0
        advance(7 * GB, 10 * GB)
        assert capsys.readouterr().err == ""


def test_json_is_not_disturbed() -> None:
    with module.byte_progress(quiet=True) as advance:
        assert advance is None
