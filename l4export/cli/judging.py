"""What the commands that judge an engine share: where a report comes from, what is shown of it, and how they end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from l4export.errors import CheckFailed, NotJudged

if TYPE_CHECKING:
    from rich.console import Console

    from l4export.cli.report_output import Reporting
    from l4export.reports.identity import Identity
    from l4export.reports.verdict import Verdict

__all__ = ["accept", "identified", "show_exercised", "show_verdict"]


def identified(
    reporting: Reporting,
    engine: Path,
    reference: Path | None = None,
    adapters: Sequence[Path] = (),
    on_step: Callable[[str], None] | None = None,
) -> Identity:
    """What a report says of its engine and its reference, whose files are read for their digests."""
    from l4export.evidence.identity import engine_identity, reference_identity

    compared = None
    if reference is not None:
        if on_step is not None:
            on_step("reading the reference's files for their digests")
        compared = reference_identity(engine, reference, adapters)
    return dataclasses.replace(reporting.identity(), engine=engine_identity(engine), reference=compared)


def show_exercised(console: Console, report: Verdict) -> None:
    """Print what the comparison went through, and what it did not."""
    for each in report.exercised:
        if each.status != "not applicable":
            how = each.how if each.status == "exercised" else f"not exercised: {each.how}"
            console.print(f"{each.what}: {how}", highlight=False, soft_wrap=True)


def show_verdict(console: Console, command: str, report: Verdict) -> None:
    """Print the verdict, and why nothing was judged."""
    word = "FAILED" if report.failures else report.verdict
    why = "" if report.failures or not report.unjudged else f", because {'; '.join(report.unjudged)}"
    console.print(f"{command}: {word}{why}", highlight=False, soft_wrap=True)


def accept(engine: Path, report: Verdict, failure: str, allow_unjudged: bool) -> None:
    """Return if a report passed, or if it was not judged and that is allowed.

    Raises:
        CheckFailed: a threshold was missed; the line begins with `failure`.
        NotJudged: meeting all thresholds proves nothing.
    """
    if report.verdict == "failed":
        raise CheckFailed(f"{engine}: {failure}: {'; '.join(report.failures)}")
    if report.verdict == "not judged" and not allow_unjudged:
        raise NotJudged(f"{engine}: not judged: {'; '.join(report.unjudged)}; or accept this with --allow-unjudged")
