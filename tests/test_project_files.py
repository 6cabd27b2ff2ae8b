"""The files around the code: what they name exists, what they link to is there, and what they promise holds."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from workshop import ROOT

MARKDOWN = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
TEMPLATES = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
EXTERNAL = {"https://keepachangelog.com/en/1.1.0/"}
PATH = re.compile(r"`((?:l4export|passes|runtimes|tests|docs|examples)/[\w./-]*\w)`")
API = re.compile(r"`(l4export(?:\.[a-z_]\w*)+)`")

each_document = pytest.mark.parametrize("document", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))


def text(path: str | Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def anchors(document: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", text(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", text(document)):
        linked = document.parent / target if target else document
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


@each_document
def test_links_of_the_site_stay_within_it(document: Path) -> None:
    """A page of the site may not link to a file that the site does not have."""
    if document.is_relative_to(ROOT / "docs"):
        for target in re.findall(r"\]\(([^)#:]+)", text(document)):
            assert (document.parent / target).resolve().is_relative_to(ROOT / "docs"), target


@each_document
def test_no_address_that_nobody_has_checked(document: Path) -> None:
    found = re.findall(r"https?://(?!127\.0\.0\.1)[^\s)>`\"]+", text(document))
    assert set(found) <= EXTERNAL


@each_document
def test_files_that_are_named_exist(document: Path) -> None:
    base = document.parent if document.is_relative_to(ROOT / "examples") else ROOT
    assert [path for path in PATH.findall(text(document)) if not (base / path).exists()] == []


@each_document
def test_modules_that_are_named_exist(document: Path) -> None:
    """`l4export.a.b.name`: a module, or a name that its file holds."""
    if document.name == "CHANGELOG.md":  # it names what was there before, too
        return
    notes = re.findall(r'"(l4export\.\w+)"', text("l4export/graph/contents.py"))  # keys of a graph's metadata
    for dotted in set(API.findall(text(document))) - {*notes, "l4export.h", "l4export.hpp"}:
        parts = dotted.split(".")
        if not any(_module(parts[:count], parts[count:]) for count in range(len(parts), 0, -1)):
            pytest.fail(dotted)


def _module(parts: list[str], names: list[str]) -> bool:
    path = ROOT.joinpath(*parts)
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return source.exists() and all(re.search(rf"\b{name}\b", source.read_text(encoding="utf-8")) for name in names)


def test_targets_of_make_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    named = {(file, name) for file in ("CONTRIBUTING.md", "README.md", ".ci/run") for name in _make_targets(text(file))}
    assert {name for file, name in named if file == "CONTRIBUTING.md"} == targets
    assert {name for _, name in named} <= targets


def _make_targets(document: str) -> list[str]:
    return re.findall(r"(?:^|`)\s*make (?:PYTHON=\S+ )?([a-z-]+)", document, re.MULTILINE)


def test_commands_of_contributing_can_be_run() -> None:
    for command in re.findall(r"^    (\.venv/\S+ .*)$", text("CONTRIBUTING.md"), re.MULTILINE):
        program, *arguments = shlex.split(command)
        assert (Path(sys.executable).parent / Path(program).name).exists(), program
        assert all((ROOT / word).exists() for word in arguments if word.startswith("tests/")), command


def test_hooks_of_pre_commit_can_be_run() -> None:
    (local,) = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    assert local["repo"] == "local"
    for hook in local["hooks"]:
        program, *_ = hook["entry"].split()
        assert program.startswith(".venv/bin/") and "VENV ?= .venv\n" in text("Makefile")
        assert (Path(sys.executable).parent / Path(program).name).exists(), program
        assert program.replace(".venv/bin", "$(BIN)") in text("Makefile"), "make lint runs it too"
        assert {"id", "name", "language"} <= hook.keys() and hook["language"] == "system"


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_issue_templates_are_forms(template: Path) -> None:
    form = yaml.safe_load(text(template))
    if template.stem == "config":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["type"] in {"input", "textarea"} and field["attributes"]["label"] for field in fields)


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("bug", {"command", "expected", "versions"}),
        ("wrong_numbers", {"manifest", "report", "seed", "command"}),
        ("performance", {"report", "machine", "command"}),
    ],
)
def test_issue_templates_ask_for_what_is_needed(template: str, wanted: set[str]) -> None:
    body = yaml.safe_load(text(f".github/ISSUE_TEMPLATE/{template}.yml"))["body"]
    assert wanted <= {field.get("id") for field in body if field.get("validations", {}).get("required")}


def test_every_page_is_in_the_navigation() -> None:
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert set(_leaves(yaml.safe_load(text("mkdocs.yml"))["nav"])) == pages


def _leaves(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    assert isinstance(nav, list | dict)
    return [page for item in (nav.values() if isinstance(nav, dict) else nav) for page in _leaves(item)]


def test_the_architecture_page_has_the_layers_of_the_contract() -> None:
    contract = tomllib.loads(text("pyproject.toml"))["tool"]["importlinter"]["contracts"][0]
    rows = re.findall(r"^\| (`[a-z_`, ]+) \|", text("docs/architecture.md"), re.MULTILINE)
    assert [re.findall(r"\w+", row) for row in rows] == [re.findall(r"\w+", layer) for layer in contract["layers"]]


def test_the_architecture_page_has_the_tree() -> None:
    tree = re.findall(r"^      ([a-z_]+)(?:/|\.py) ", text("docs/architecture.md"), re.MULTILINE)
    package = ROOT / "l4export"
    there = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert set(tree) == there - {"__init__", "__main__"}
