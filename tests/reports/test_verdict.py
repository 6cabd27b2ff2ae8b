"""What reports that judge have in common."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest

from l4export.errors import InputError
from l4export.reports.verdict import Verdict, check_thresholds, missed


@dataclass(frozen=True)
class Report(Verdict):
    name: str
    failures: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()


def test_a_failure_outweighs_what_was_not_judged_and_that_is_not_passing() -> None:
    passed, failed = Report("e"), Report("e", ("kl",), ("no boundary",))
    unjudged = Report("e", (), ("no boundary",))
    assert (passed.verdict, passed.why, passed.passed) == ("passed", (), True)
    assert (failed.verdict, failed.why, failed.passed) == ("failed", ("kl",), False)
    assert (unjudged.verdict, unjudged.why, unjudged.passed) == ("not judged", ("no boundary",), False)


def test_a_report_says_its_verdict_first() -> None:
    assert list(json.loads(Report("é", ("kl",)).to_json()).items()) == [
        ("verdict", "failed"),
        ("name", "é"),
        ("failures", ["kl"]),
        ("unjudged", []),
    ]
    assert Report("é").to_json().isascii()


@dataclass(frozen=True)
class Figures(Verdict):
    figures: tuple[dict[str, float | None], ...]
    failures: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_has_no_word_for_what_is_not_finite(value: float) -> None:
    told = Figures(({"kl": value, "top1": 0.5},)).to_json()
    assert json.loads(told, parse_constant=pytest.fail) == {
        "verdict": "passed",
        "figures": [{"kl": None, "top1": 0.5}],
        "failures": [],
        "unjudged": [],
    }


def test_agreement_is_limited_from_below_and_differences_from_above() -> None:
    assert missed({"kl": 0.2}, {"kl": 0.1}) == ["kl 0.2, threshold 0.1"] and not missed({"kl": 0.1}, {"kl": 0.1})
    assert missed({"top1_agreement": 0.9}, {"top1_agreement": 0.95})
    assert not missed({"top1_agreement": 0.95}, {"top1_agreement": 0.95})
    assert missed({"kl": math.nan}, {"kl": 1}) and missed({"greedy_prefix": math.nan}, {"greedy_prefix": 0})


def test_every_miss_is_told_and_what_has_no_threshold_or_no_figure_is_none() -> None:
    thresholds = {"kl": 0.1, "greedy_prefix": 1.0, "top1_agreement": 1.0}
    figures = {"top1_agreement": 0.98765, "other": 5.0, "kl": 0.5}
    assert missed(figures, thresholds) == ["kl 0.5, threshold 0.1", "top1_agreement 0.9877, threshold 1"]


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_thresholds_are_finite_and_known(value: float) -> None:
    check_thresholds({"kl": 0.0}, ("kl",))
    with pytest.raises(InputError, match=r"--threshold kl=.*finite"):
        check_thresholds({"kl": value}, ("kl",))
    with pytest.raises(InputError, match="--threshold top: not one of a, b"):
        check_thresholds({"top": 1}, ("b", "a"))
