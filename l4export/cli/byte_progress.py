"""The progress of a build in bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

__all__ = ["byte_progress"]


@contextmanager
def byte_progress(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar with bytes, rate and remaining time on standard error. If that is no terminal, print lines instead.

    Yields a function of (bytes written, bytes in all), or None if `quiet`. Lines come every ten seconds.
    """
    if quiet:
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("weights", total=None)
        yield lambda written, total: bar.update(task, completed=written, total=total)


def _lines(interval: float = 10.0) -> Callable[[int, int], None]:
    """Make a function that prints lines. Bytes before its first call count as done, but not in the rate."""
    first: tuple[int, float] | None = None
    last = 0.0

    def advance(written: int, total: int) -> None:
        nonlocal first, last
        now = time.monotonic()
        if first is None:
            first, last = (written, now), now
        if now - last >= interval and written > first[0]:
            last = now
            rate = (written - first[0]) / (now - first[1])
            left = (total - written) / rate
            done = f"{written / 1e9:.2f} of {total / 1e9:.2f} GB"
            click.echo(f"{done}, {rate / 1e9:.2f} GB/s, {left:.0f} s left", err=True)

    return advance
