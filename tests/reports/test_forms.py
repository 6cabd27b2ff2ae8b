"""The forms that people and CI systems read: what they say of every verdict, and that nothing in them is markup."""

from __future__ import annotations

import builtins
import dataclasses
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from l4export.errors import EnvironmentLacks
from l4export.reports.document import Document, error_document
from l4export.reports.figure import Figure
from l4export.reports.forms import form_of
from l4export.reports.html_form import as_html
from l4export.reports.junit_form import as_junit
from l4export.reports.markdown_form import as_markdown
from l4export.reports.plot_scale import Scale, linear_scale, logarithmic_scale
from l4export.reports.sections import Bar, Bars, Counts, Curve, Table, by_decade, histogram, thinned
from report_documents import DOCUMENTS, FAILED, IDENTITY, PASSED, SECTIONS, UNJUDGED

ERROR = error_document("parity", "<e>: no such\nengine & co", 2, IDENTITY)
EVERY = {**DOCUMENTS, "error": ERROR}


# JUnit ---------------------------------------------------------------------------------------------------------------


def suites(document: Document) -> ET.Element:
    return ET.fromstring(as_junit(document))


@pytest.mark.parametrize("name", EVERY)
def test_counts_of_junit_are_those_of_its_cases(name: str) -> None:
    root = suites(EVERY[name])
    for element in (root, *root.findall("testsuite")):
        cases = element.findall(".//testcase")
        assert int(element.attrib["tests"]) == len(cases) > 0
        for count, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(element.attrib[count]) == len(element.findall(f".//testcase/{tag}"))


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("passed", None),
        ("measured", None),
        ("failed", "failure"),
        ("unjudged", "error"),
        ("allowed", "skipped"),
        ("error", "error"),
    ],
)
def test_the_verdict_is_a_case(name: str, outcome: str | None) -> None:
    document = EVERY[name]
    case = suites(document).find("testsuite[@name='verdict']/testcase")
    assert case is not None
    found = [tag for tag in ("failure", "error", "skipped") if case.find(tag) is not None]
    assert found == ([] if outcome is None else [outcome])
    if outcome:
        assert document.verdict in case.find(outcome).attrib["message"]  # type: ignore[union-attr]


def test_every_figure_is_a_case_of_its_phase() -> None:
    cases = {case.attrib["name"]: case for case in suites(FAILED).findall("testsuite[@name='prefill']/testcase")}
    assert list(cases) == ["kl_max", "top1_agreement", "kl_mean"]
    assert cases["kl_max"].find("failure") is None and cases["kl_max"].find("skipped") is None
    assert cases["top1_agreement"].find("failure").attrib["message"] == "top-1 agreement: 0.7500 at least 1"  # type: ignore[union-attr]
    assert "nan" in cases["kl_mean"].find("failure").attrib["message"]  # type: ignore[union-attr]
    (pixels,) = suites(FAILED).findall("testsuite[@name='images']/testcase/skipped")
    assert pixels.attrib["message"] == "not measured: Torchvision is missing"
    names = [suite.attrib["name"] for suite in suites(FAILED)]
    assert names == ["verdict", "prefill", "images", "decode"]
    properties = {each.attrib["name"]: each.attrib["value"] for each in suites(FAILED).iter("property")}
    assert properties["command"] == IDENTITY.command and properties["seed"] == "0"


def test_control_characters_are_no_xml() -> None:
    figure = dataclasses.replace(FAILED.figures[1], phase="a\x00b", label="\x1b[31mred")
    assert IDENTITY.engine is not None
    engine = dataclasses.replace(IDENTITY.engine, path="\ufffe", options={"\x01": {"\x02": "\x03"}})
    identity = dataclasses.replace(IDENTITY, engine=engine)
    document = dataclasses.replace(FAILED, figures=(figure,), why=("\x07",), identity=identity)
    assert suites(document).find("testsuite[2]") is not None


# Markdown ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_markdown_says_the_verdict_and_why(name: str) -> None:
    text = as_markdown(EVERY[name])
    assert f": {EVERY[name].verdict}\n" in text
    for number, line in enumerate(text.splitlines()):
        assert not line.startswith("|") or line.count("|") >= 3, number
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1  # a cell has no bar of its own


def test_nothing_of_a_report_is_markdown() -> None:
    assert "- &#60;e&#62;: no such engine &#38; co" in as_markdown(ERROR)
    table = Table("T*", ("a|b",), (("<script>`x`\n[l](u) @me $x$",),))
    text = as_markdown(dataclasses.replace(PASSED, sections=(table,)))
    assert "<script>" not in text and "`x`" not in text and "[l]" not in text and "@me" not in text
    assert "a&#124;b" in text and "<summary>T&#42;</summary>" in text


def test_demanded_figures_come_first_and_the_rest_is_folded() -> None:
    text = as_markdown(FAILED)
    shown, _, folded = text.partition("<details>")
    assert "top-1 agreement" in shown and "near ties apart" not in shown and "near ties apart" in folded
    assert "Nothing was demanded." in as_markdown(UNJUDGED)


# HTML ----------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks that elements close in the order in which they opened, and collects what they have."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.seen.append(tag)
        self.ids += [given["id"]] if given.get("id") else []
        self.links += [given["href"]] if given.get("href") else []
        assert not any(name.startswith("on") or name == "src" for name in given)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.mark.parametrize("name", EVERY)
def test_a_page_is_whole_and_needs_nothing(name: str) -> None:
    document = dataclasses.replace(EVERY[name], sections=SECTIONS)
    text = as_html(document)
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & set(page.seen) and "://" not in text
    assert len(set(page.ids)) == len(page.ids)
    assert {link.removeprefix("#") for link in page.links} == set(page.ids)
    assert f"<strong>{document.verdict}</strong>" in text and "prefers-color-scheme: dark" in text
    for reason in document.why:
        assert " ".join(reason.split()) in page.text
    for label, value in document.identity.rows():
        assert label in page.text and value in page.text


def test_every_threshold_is_a_bar_and_every_section_is_there() -> None:
    text = as_html(dataclasses.replace(FAILED, sections=SECTIONS))
    assert text.count('<div class="tick"') == 2 * len(FAILED.demanded)  # among the thresholds, and among all figures
    page = Page(text)
    for section in SECTIONS:
        assert f'aria-label="{section.title}' in text or section.title in page.text
    assert 'role="img" aria-label="KL, from 1e-09 to 0.5; the largest at position 2; the threshold is 0.1"' in text
    assert "chunk boundaries, every 2 tokens" in page.text and page.seen.count("details") == 4
    assert "<script>" not in text and "<script>alert</script>" in page.text


def test_a_long_report_folds_what_is_met() -> None:
    figures = tuple(Figure(f"layer {at}", "hidden", "hidden", at / 10, threshold=0.85) for at in range(10))
    page = Page(as_html(dataclasses.replace(FAILED, figures=figures)))
    assert "layer 8: all met" in page.text and "layer 9: all met" not in page.text


def test_a_plot_with_many_chunks_says_how_many_tokens_they_have() -> None:
    curve = dataclasses.replace(SECTIONS[0], marks=tuple(map(float, range(100))))  # type: ignore[arg-type]
    text = as_html(dataclasses.replace(PASSED, sections=(curve,)))
    assert 'class="mark"' not in text and "(too many to draw)" in text


def test_without_jinja_a_page_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *given: Any) -> Any:
        if name == "jinja2":
            raise ImportError(name)
        return real(name, *given)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(EnvironmentLacks, match="pip install jinja2"):
        form_of(Path("r.html"))
    assert form_of(Path("r.md")) is as_markdown


# What plots are made of ----------------------------------------------------------------------------------------------


def test_scales_have_round_numbers() -> None:
    assert linear_scale([0.3, 3.2]) == Scale(0.0, 4.0, (0.0, 1.0, 2.0, 3.0, 4.0))
    assert linear_scale([]) == linear_scale([0.0, math.nan]) == Scale(0.0, 1.0, (0.0, 1.0))
    scale = logarithmic_scale([3e-7, 1e-4, 0.0, math.inf])
    assert (scale.low, scale.high) == (1e-7, 1e-4) and len(scale.ticks) == 4
    assert [scale.at(value) for value in (0.0, 1e-7, 1e-4, 1.0, math.nan)] == [0, 0, 100, 100, 100]
    assert scale.at(1e-5) == pytest.approx(66.67)
    assert len(logarithmic_scale([1e-15, 1.0]).ticks) == 6 and logarithmic_scale([]).low == 0.1


def test_values_are_counted_by_decade() -> None:
    assert by_decade([0.5, 0.05, 0.0004, 0.0, 1e-20]) == (
        *((-17, 2), *((decade, 0) for decade in range(-16, -4))),
        *((-4, 1), (-3, 0), (-2, 1), (-1, 1)),
    )
    bars = histogram("KL", by_decade([0.5, 0.0]), "tokens")
    assert (bars.rows[0].label, bars.rows[-1].label) == ("below 1e-16", "1e-1 to 1e0") and by_decade([]) == ()


def test_long_curves_keep_what_is_largest() -> None:
    values = [0.0] * 1000
    values[777] = 1.0
    points = thinned(values)
    assert len(points) == 334 and max(points, key=lambda point: point[1]) == (777, 1.0)
    assert thinned([1.0, 2.0], first=5) == ((5, 1.0), (6, 2.0))


def test_plots_can_be_read_as_tables() -> None:
    bars = Bars("B", (Bar("a", 1.0, "1 GB", 0.5, 1.5), Bar("b", 2.0, "2 GB")), "bytes")
    assert bars.table.rows == (("a", "1 GB", "0.5 to 1.5"), ("b", "2 GB", ""))
    assert Curve("C", ((0, 1e-9), (1, math.nan)), "x", "y").table.rows == (("0", "1e-09"), ("1", "nan"))
    assert Curve("C", (), "x", "y").summary == "y: nothing to show"
    assert Counts("C", "layer", ("0", "1"), (("3", (5, 7)),)).table.rows == (("3", "5", "7"),)
