"""Figures of reports, and the documents that programs read: they say what their schema says, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from l4export.errors import InputError
from l4export.reports.document import MARK, SCHEMA_VERSION, Document, error_document
from l4export.reports.exercised import Exercised
from l4export.reports.figure import Figure
from l4export.reports.forms import FORMS, form_of
from l4export.reports.identity import Host, Identity, Program, versions
from l4export.reports.json_form import as_json
from report_documents import DIGEST, DOCUMENTS, FAILED, FIGURES, IDENTITY
from workshop import ROOT

SCHEMA = Draft202012Validator(json.loads((ROOT / "l4export/reports/report.schema.json").read_text(encoding="utf-8")))


def told(document: Document) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(as_json(document), parse_constant=pytest.fail)
    return found


def test_it_is_a_schema_of_this_version() -> None:
    Draft202012Validator.check_schema(SCHEMA.schema)
    named = SCHEMA.schema["properties"]
    assert (named["format"]["const"], named["schema_version"]["const"]) == (MARK, SCHEMA_VERSION)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_valid_and_every_field_is_required(name: str) -> None:
    document = told(DOCUMENTS[name])
    SCHEMA.validate(document)
    for owner in (document, document["identity"], document["identity"]["engine"], document["figures"][0]):
        for field in list(owner):
            value = owner.pop(field)
            assert field == "remark" or not SCHEMA.is_valid(document), field
            owner[field] = value
        owner["other"] = 1
        assert not SCHEMA.is_valid(document)
        del owner["other"]


def test_an_error_has_what_is_known_of_it() -> None:
    bare = Identity(Program("0.1.0", DIGEST), "l4export bench e", "2026-01-02T03:04:05Z", 0.1)
    document = told(error_document("bench", "e: no such engine", 2, bare))
    SCHEMA.validate(document)
    assert (document["verdict"], document["why"], document["exit_code"]) == ("error", ["e: no such engine"], 2)


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "passed"},
        {"verdict": "failed", "why": ()},
        {"verdict": "failed", "exit_code": 0},
        {"verdict": "passed", "why": (), "exit_code": 5},
        {"verdict": "not judged", "exit_code": 1},
        {"verdict": "error", "exit_code": 0},
    ],
)
def test_verdicts_that_contradict_themselves_are_not_valid(change: dict[str, Any]) -> None:
    assert not SCHEMA.is_valid(told(dataclasses.replace(FAILED, **change)))


def test_what_is_not_finite_is_null_and_misses() -> None:
    figure = told(FAILED)["figures"][2]
    assert (figure["value"], figure["status"], figure["threshold"]) == (None, "missed", 1e-3)


def test_how_a_figure_stands_to_its_threshold() -> None:
    assert [figure.status for figure in FIGURES] == ["met", "missed", "missed", "not measured", "not demanded"]
    assert [figure.limit for figure in FIGURES[:2]] == ["at most", "at least"]
    assert [figure.demanded for figure in FIGURES] == ["at most 1e-06", "at least 1", "at most 0.001", "", ""]


@pytest.mark.parametrize(
    ("figure", "shown"),
    [
        (Figure("p", "n", "l", 1234567890, unit="bytes"), "1.235 GB"),
        (Figure("p", "n", "l", 5_000_000, unit="bytes"), "5.00 MB"),
        (Figure("p", "n", "l", 12.34e9, unit="bytes/s"), "12.3 GB/s"),
        (Figure("p", "n", "l", 0.734, unit="share"), "73%"),
        (Figure("p", "n", "l", 12.345, ".2f", "tokens/s"), "12.35 tokens/s"),
        (Figure("p", "n", "l", None), "-"),
        (Figure("p", "n", "l", math.nan), "nan"),
    ],
)
def test_figures_are_shown_in_their_units(figure: Figure, shown: str) -> None:
    assert figure.shown == shown
    bounded = dataclasses.replace(figure, value=1.0, low=0.5, high=2.0, unit="", form=".2f")
    assert (bounded.interval, figure.interval) == ("0.50 to 2.00", "")


def test_what_was_counted_was_exercised() -> None:
    assert Exercised.counted("a", 2, "2 crossed", "none") == Exercised("a", "exercised", "2 crossed")
    assert Exercised.counted("a", 0, "0 crossed", "none") == Exercised("a", "not exercised", "none")


def test_this_machine_is_named() -> None:
    host, found = Host.this(), versions()
    assert host.system and host.cpu and host.cores >= 1
    assert {"python", "l4export", "onnxruntime", "torch", "transformers"} <= set(found) and "tensorrt" not in found
    assert IDENTITY.host != host


@pytest.mark.parametrize("suffix", FORMS)
def test_every_form_has_the_mark_of_a_report_in_its_beginning(suffix: str) -> None:
    """By it a file is known to be a report, which alone is replaced by one."""
    for document in DOCUMENTS.values():
        assert MARK in form_of(Path(f"r{suffix.upper()}"))(document)[:256]


@pytest.mark.parametrize("name", ["report", "report.txt", "json"])
def test_other_suffixes_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"ends in \.json.*; name it so"):
        form_of(Path(name))
