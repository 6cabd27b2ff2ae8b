"""`l4export inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

__all__ = ["command"]

_BETWEEN = {"heads": " x ", "stored_as": " and "}


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(path: Path, as_json: bool) -> None:
    """Show what the checkpoint or engine at PATH is: architecture, parameters, dtypes, bytes, passes."""
    from l4export.inspection.facts import inspect

    facts = inspect(path)
    if as_json:
        click.echo(facts.to_json())
    else:
        _show(facts.to_dict())


def _show(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value != {}:  # compiled parts, a check graph and quantised weights are not everywhere
            table.add_row(name.replace("_", " "), _text(name, value))
    Console(markup=False, emoji=False).print(table)


def _text(name: str, value: Any) -> str:
    match value:
        case dict():
            return "\n".join(f"{key}  {_text(name, item)}" for key, item in value.items())
        case tuple():
            return _BETWEEN.get(name, ", ").join(map(str, value)) or "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case None:
            return "-"
    return str(value)
