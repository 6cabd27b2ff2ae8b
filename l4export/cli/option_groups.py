"""Options in groups. A command with many options shows them under headings in its help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["GroupedCommand", "option", "option_group"]


class _GroupedOption(click.Option):
    """An option with the heading under which it stands."""

    heading = "Options"


class GroupedCommand(click.Command):
    """A command whose help shows options under the headings of `option_group`, in the order of declaration."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each heading. Options without a heading come last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        for parameter in sorted(options, key=lambda each: not isinstance(each, _GroupedOption)):
            if record := parameter.get_help_record(ctx):
                sections.setdefault(getattr(parameter, "heading", "Other"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def option_group(heading: str, *options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Decorate a command with options, made by `option`, that stand under one heading."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        for parameter in command.__click_params__[-len(options) :]:
            parameter.heading = heading
        return command

    return decorate


def option(*names: str, **attributes: Any) -> Callable[[Any], Any]:
    """Do what `click.option` does, for `option_group`."""
    return click.option(*names, cls=_GroupedOption, **attributes)
