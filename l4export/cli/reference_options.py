"""Options of commands that compare an engine with a reference."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["adapter_option"]

adapter_option = click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="An adapter that ENGINE was built with. May be given several times, in the same order.",
)
