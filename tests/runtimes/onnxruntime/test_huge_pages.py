"""`run` and `bench` restart once with huge pages; nothing else does, and a choice made in the environment stands."""

from __future__ import annotations

import os
import sys

import pytest

from l4export.cli import main
from l4export.runtimes.onnxruntime import huge_pages
from workshop import Workshop


@pytest.fixture
def restarts(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    calls: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: calls.append(arguments))
    monkeypatch.setattr(huge_pages, "_offered", lambda: True)
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    return calls


def test_restarts_with_the_tunable(restarts: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    huge_pages.restart_with_huge_pages()
    assert restarts == [[sys.executable, *sys.orig_argv[1:]]]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"


def test_not_a_second_time(restarts: list[list[str]]) -> None:
    huge_pages.restart_with_huge_pages()
    huge_pages.restart_with_huge_pages()
    assert len(restarts) == 1


def test_without_standard_output(restarts: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as with `>&-`
    huge_pages.restart_with_huge_pages()
    assert len(restarts) == 1


@pytest.mark.parametrize("choice", ["glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=2"])
def test_a_choice_in_the_environment_stands(
    restarts: list[list[str]], monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", choice)
    huge_pages.restart_with_huge_pages()
    assert restarts == []


def test_not_where_the_system_offers_none(restarts: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_offered", lambda: False)
    huge_pages.restart_with_huge_pages()
    assert restarts == []


def test_a_call_from_a_program_never_restarts_it(
    restarts: list[list[str]], workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["run", str(workshop.engine_path("scout", "static")), "--token-ids", "1", "--max-new-tokens", "2"])
    assert restarts == []
    assert len(capsys.readouterr().out.split()) == 2
