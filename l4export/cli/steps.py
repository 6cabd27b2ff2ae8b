"""The progress of a long command, step by step."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["step_progress"]


@contextmanager
def step_progress(interval: float = 10.0) -> Iterator[Callable[[str], None]]:
    """Show what is being done in a status line on standard error. If that is no terminal, print lines instead.

    Yields a function of the line. Lines are printed at most every `interval` seconds.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("") as status:
            yield status.update
        return
    last = time.monotonic()

    def tell(step: str) -> None:
        nonlocal last
        if time.monotonic() - last >= interval:
            last = time.monotonic()
            print(f"l4export: {step}", file=sys.stderr)

    yield tell
