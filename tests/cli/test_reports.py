"""The reports of the commands that measure: what is written where, how they end, and what errors leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from jsonschema import Draft202012Validator

from l4export.cli import main
from l4export.cli.report_output import Reporting
from workshop import ROOT, Workshop, random_ids

SCHEMA = Draft202012Validator(json.loads((ROOT / "l4export/reports/report.schema.json").read_text(encoding="utf-8")))
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        return int(caught.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def parity(workshop: Workshop, run: Run) -> Run:
    engine, checkpoint = workshop.engine_path("scout", "static"), workshop.checkpoint("scout")
    return lambda *more: run("parity", engine, "--reference", checkpoint, *more)


def report_in(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    SCHEMA.validate(document)
    return document


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_a_comparison_says_what_it_is_of_and_how_it_went(
    workshop: Workshop, parity: Run, tmp_path: Path, stream: tuple[str, ...]
) -> None:
    path, others = tmp_path / "r.json", [tmp_path / f"r{suffix}" for suffix in (".xml", ".md", ".html")]
    files = [argument for file in (path, *others) for argument in ("-o", file)]
    code, printed, _ = parity("--prefill", 20, "--decode", 4, "--seed", 3, *files, "--json", *stream)
    report = report_in(path)
    junit, markdown, page = (file.read_text(encoding="utf-8") for file in others)
    assert 'name="verdict"' in junit and ": passed\n" in markdown and "<strong>passed</strong>" in page
    assert ("Experts chosen" in page) == bool(stream) and "Difference along the positions" in page
    assert (code, report["exit_code"], report["verdict"]) == (0, 0, "passed")
    assert json.loads(printed) == report
    identity = report["identity"]
    assert identity["command"].startswith("l4export parity ") and identity["command"].endswith(
        " ".join(("--json", *stream))
    )
    assert (identity["seed"], identity["provider"]) == (3, "CPUExecutionProvider") and identity["seconds"] > 0
    assert identity["reference"]["is_source"] and identity["engine"]["target"] == "ort-cpu"
    found = {each["what"]: each["status"] for each in report["exercised"]}
    assert (found["chunk boundaries"], found["decoding"]) == ("exercised", "exercised")
    judged = {(figure["phase"], figure["name"]) for figure in report["figures"] if figure["status"] == "met"}
    assert {("layer 3", "router"), ("logits", "kl_max")} <= judged if stream else ("greedy", "greedy_prefix") in judged
    assert len(report["details"]["layers"]) == 4 if stream else report["details"]["greedy_tokens"] == 4


def test_names_are_shown_as_they_are(
    workshop: Workshop, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is markup to the library that prints is a part of a name to others."""
    monkeypatch.chdir(tmp_path)
    Path("e[red]:cat:").symlink_to(workshop.engine_path("scout", "static"))
    Path("c").symlink_to(workshop.checkpoint("scout"))
    for stream in ((), ("--stream",)):
        code, out, _ = run("parity", "e[red]:cat:", "--reference", "c", "--prefill", 20, "--decode", 2, *stream)
        assert code == 0 and "e[red]:cat: against c" in out
    assert "e[red]:cat:" in run("bench", "e[red]:cat:", "--prefill", 4, "--decode", 2, "--repeats", 1)[1]
    Path("ids.json").write_text(str(random_ids(130).tolist()))
    measured = ("--reference", "c", "--text", "ids.json", "--no-breakdown", "--allow-unjudged")
    assert "e[red]:cat: against c" in run("quality", "e[red]:cat:", *measured)[1]


def test_another_checkpoint_is_not_what_an_engine_was_built_from(
    workshop: Workshop, parity: Run, run: Run, tmp_path: Path
) -> None:
    run("sample", tmp_path / "other", "--variant", "scout", "--seed", 9)
    code, printed, _ = run(
        *("parity", workshop.engine_path("scout", "static"), "--reference", tmp_path / "other", "--json")
    )
    report = json.loads(printed)
    assert (code, report["verdict"], report["identity"]["reference"]["is_source"]) == (1, "failed", False)
    assert report["why"] and report["exit_code"] == 1


def test_what_proves_nothing_is_not_judged(parity: Run, tmp_path: Path) -> None:
    few = ("--prefill", 8, "--decode", 4, "-o", tmp_path / "r.json")
    code, out, err = parity(*few)
    assert code == report_in(tmp_path / "r.json")["exit_code"] == 5
    assert "parity: not judged, because no chunk boundary" in out
    assert err.count("\n") == 1 and "or accept this with --allow-unjudged" in err
    code, out, err = parity(*few, "--allow-unjudged")
    report = report_in(tmp_path / "r.json")
    assert (code, report["exit_code"], report["verdict"]) == (0, 0, "not judged") and "not judged" in out and not err
    assert parity(*few, "--threshold", "max_abs_difference=0")[0] == 1  # a failure is one, whatever was exercised


def test_quality_and_bench(workshop: Workshop, run: Run, tmp_path: Path) -> None:
    engine, checkpoint, path = (
        workshop.engine_path("scout", "static"),
        workshop.checkpoint("scout"),
        tmp_path / "r.json",
    )
    (tmp_path / "ids.json").write_text(str(random_ids(130).tolist()))
    measured = ("quality", engine, "--reference", checkpoint, "--text", tmp_path / "ids.json", "--window", 50)
    code, out, err = run(*measured, "-o", path)
    assert code == report_in(path)["exit_code"] == 5 and "nothing was demanded" in err and "not judged" in out
    code, _, _ = run(*measured, "-o", path, "--threshold", "kl=0.1")
    report = report_in(path)
    assert (code, report["verdict"]) == (0, "passed") and report["identity"]["reference"]["is_source"]
    assert next(figure for figure in report["figures"] if figure["name"] == "kl")["status"] == "met"
    page = tmp_path / "r.html"
    code, _, _ = run(*measured, "-o", page, "--no-breakdown", "--allow-unjudged")
    assert code == 0 and "KL along the window" in page.read_text(encoding="utf-8")
    code, _, _ = run("bench", engine, "--prefill", 8, "--decode", 2, "--repeats", 1, "-o", path, "-o", page)
    assert "weights read for a token" in page.read_text(encoding="utf-8")
    report = report_in(path)
    assert (code, report["verdict"], report["kind"]) == (0, "measured", "bench") and report["details"]["repeats"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--reference", "none"), "none: no such"),
        (("--prefill", 0), "--prefill 0"),
        (("--images", "seeded", "--image", "a.png"), "--image names others"),
        (("--prefill", "many"), "Invalid value for '--prefill'"),
        (("--unknown",), "No such option"),
        (("extra",), "unexpected extra argument"),
        (("--json", "old.json"), "--json: prints the report and takes no file; write it to one with -o FILE.json"),
        (("--json=old.json",), "prints the report and takes no file"),
        (("--html", "old.html"), "--html: is now -o; write a page with -o FILE.html"),
    ],
)
def test_an_error_takes_the_place_of_the_last_report(
    parity: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ("--prefill", 8, "--decode", 0, "--allow-unjudged")
    files = ("-o", "r.json", "--report=s.json", "-ot.json")
    assert parity(*few, *files)[0] == 0
    assert report_in(Path("r.json"))["verdict"] == "not judged"
    code, out, err = parity(*files, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and words in err
    for name in ("r.json", "s.json", "t.json"):
        report = report_in(Path(name))
        assert (report["verdict"], report["exit_code"]) == ("error", 2) and words in report["why"][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "s.json", "t.json"]


def test_a_run_that_was_killed_leaves_no_other_runs_report(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with Reporting("bench", [path], context=click.Context(click.Command("bench"))):
        assert "has not ended" in report_in(path)["why"][0]
    context = click.Context(click.Command("bench"))
    for error, code in (
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(32, "Broken pipe"), 141),
        (OSError(28, "Full"), 4),
    ):
        with pytest.raises(type(error)), Reporting("bench", [path], context=context):
            raise error
        assert report_in(path)["exit_code"] == code


def test_digests_are_for_reports_alone(parity: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference may have hundreds of gigabytes."""
    monkeypatch.setattr("l4export.evidence.identity.reference_identity", lambda *_: pytest.fail("read for nothing"))
    assert parity("--prefill", 20, "--decode", 2)[0] == 0


@pytest.mark.parametrize(("name", "code", "words"), [("e/manifest.json", 2, "lost"), ("none/r.json", 4, "no such")])
def test_other_files_are_refused_before_any_work(parity: Run, tmp_path: Path, name: str, code: int, words: str) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e/manifest.json").write_text("{}")
    found, out, err = parity("-o", tmp_path / "r.json", "-o", tmp_path / name)
    assert (found, out, err.count("\n")) == (code, "", 1) and words in err
    assert (tmp_path / "e/manifest.json").read_text() == "{}" and not (tmp_path / "none").exists()
    report = report_in(tmp_path / "r.json")  # an earlier run's would be taken for this one's
    assert (report["verdict"], report["exit_code"]) == ("error", code) and words in report["why"][0]
    assert parity("-o", tmp_path / name, "-o", tmp_path / "r.json", "--unknown")[0] == code
    assert words in report_in(tmp_path / "r.json")["why"][0]
