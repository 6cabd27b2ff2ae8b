"""docs/reference/command_line.md against the commands themselves: every option, choice and default."""

from __future__ import annotations

import importlib
import re

import click
import pytest

from l4export.cli import _COMMANDS
from workshop import ROOT

PAGE = (ROOT / "docs/reference/command_line.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def rows(section: str) -> dict[str, tuple[str, str]]:
    """Option -> its cells: default, text."""
    found = re.findall(r"^\| (`-.*?) \| (.*?) ?\| (.*) \|$", section, re.MULTILINE)
    return {option: (default, text) for named, default, text in found for option in re.findall("`(-[^`]+)`", named)}


def options(command: str) -> list[click.Option]:
    parameters = importlib.import_module(f"l4export.cli.{command}").command.params
    return [parameter for parameter in parameters if isinstance(parameter, click.Option)]


def test_every_command_has_a_section() -> None:
    assert set(SECTIONS) == set(_COMMANDS)


@pytest.mark.parametrize("command", _COMMANDS)
def test_a_section_has_the_options_of_its_command(command: str) -> None:
    names = {name for option in options(command) for name in (*option.opts, *option.secondary_opts)}
    assert set(rows(SECTIONS[command])) == names


@pytest.mark.parametrize("command", _COMMANDS)
def test_a_row_has_the_choices_and_the_default_of_its_option(command: str) -> None:
    said = rows(SECTIONS[command])
    for option in options(command):
        default, text = said[option.opts[-1]]
        if isinstance(option.type, click.Choice):
            assert all(f"`{choice}`" in text for choice in option.type.choices), option.opts
        assert (default == "required") == option.required, option.opts
        if option.show_default:
            assert default.strip("`") == ("on" if option.default is True else str(option.default)), option.opts
