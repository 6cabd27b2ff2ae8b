"""What is noted of a generation: speeds that leave the prompt out."""

from __future__ import annotations

import pytest

from l4export.runtimes import generation_record
from l4export.runtimes.generation_record import GenerationRecord


def test_speeds_of_prompt_and_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.0, 102.5, 103.0])
    monkeypatch.setattr(generation_record.time, "monotonic", lambda: next(clock))
    record = GenerationRecord(prompt_tokens=10, load_seconds=0.12345)
    assert list(record.follow(iter([7, 8, 9]))) == [7, 8, 9]
    assert record.to_dict() == {
        "prompt_tokens": 10,
        "new_tokens": 3,
        "load_seconds": 0.1235,
        "time_to_first_token_seconds": 2.0,
        "prefill_tokens_per_second": 5.0,
        "decode_tokens_per_second": 2.0,
    }


def test_one_token_has_no_decoding_speed() -> None:
    record = GenerationRecord(prompt_tokens=1)
    record.add(5, seconds=0.5)
    assert record.to_dict()["decode_tokens_per_second"] is None
