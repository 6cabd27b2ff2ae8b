"""`make fuzz`: runs cases of every class and prints what came of them.

    python tests/fuzz [--class CLASS] [--seed SEED] [--cases CASES] [--jobs JOBS]

`--seed` is the number of the first case; alone it runs that one case and prints all about it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections import defaultdict
from pathlib import Path

from fuzz_case import Outcome, Subject
from fuzz_harness import Tally, run_cases

_SUBJECTS = {
    "checkpoint": "fuzz_checkpoint.CheckpointSubject",
    "engine": "fuzz_engine.EngineSubject",
    "session": "fuzz_session.SessionSubject",
    "tokenizer": "fuzz_tokenizer.TokenizerSubject",
    "image": "fuzz_image.ImageSubject",
    "pth": "fuzz_pth.PthSubject",
    "quantised": "fuzz_quantised.QuantisedSubject",
    "adapter": "fuzz_adapter.AdapterSubject",
    "partial": "fuzz_partial.PartialSubject",
    "written": "fuzz_written.WrittenSubject",
    "calibration": "fuzz_partial.CalibrationSubject",
}
_SHOWN = 8

sys.path.append(str(Path(__file__).parents[1] / "support"))


def subject(name: str) -> type[Subject]:
    """The subject of a class, which may need libraries that others do not need."""
    module, _, kind = _SUBJECTS[name].partition(".")
    found: type[Subject] = getattr(importlib.import_module(module), kind)
    return found


def main() -> int:
    """Exit code 0 when no case failed, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--class", dest="name", choices=_SUBJECTS, help="one class of inputs; all without it")
    parser.add_argument("--seed", type=int, help="number of the first case")
    parser.add_argument("--cases", type=int, help="cases of each class; 1000, or 1 with --seed alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="worker processes; one a core without it")
    given = parser.parse_args()
    first, alone = given.seed or 0, given.seed is not None and given.cases is None
    numbers = range(first, first + (given.cases or (1 if alone else 1000)))
    failed = False
    print(_row("class", "cases", "refused", "accepted", "noisy", "failed", "seconds", "slowest", "peak MB"))
    for name in [given.name] if given.name else _SUBJECTS:
        tally = run_cases(subject(name), numbers, given.jobs, _print_case if alone else lambda _: None)
        _print_tally(tally)
        failed |= bool(tally.failures)
    return int(failed)


def _row(*cells: object) -> str:
    return "".join([f"{cells[0]:12}", *(f"{cell:>10}" for cell in cells[1:])])


def _print_tally(tally: Tally) -> None:
    counts = tally.cases, tally.refused, tally.accepted, len(tally.noisy), len(tally.failures)
    times = f"{tally.seconds:.1f}", f"{tally.slowest:.1f}"
    print(_row(tally.name, *counts, *times, tally.peak // 10**6), flush=True)
    groups = defaultdict(list)
    for outcome in tally.failures:
        groups[outcome.signature].append(outcome)
    for outcomes in sorted(groups.values(), key=len, reverse=True):
        _print_group(f"{outcomes[0].kind}: {outcomes[0].detail}", outcomes)
    if tally.noisy:
        _print_group(f"noisy: {' '.join(tally.noisy[0].output.split())}", tally.noisy)


def _print_group(told: str, outcomes: list[Outcome]) -> None:
    """One line a cause; a failure's seeds make it again."""
    seeds = ", ".join(str(outcome.number) for outcome in outcomes[:_SHOWN])
    more = f" and {len(outcomes) - _SHOWN} more" if len(outcomes) > _SHOWN else ""
    print(f"  {told[:300]}\n    SEED {seeds}{more}; of the first: {' | '.join(outcomes[0].what)[:400]!r}", flush=True)


def _print_case(outcome: Outcome) -> None:
    for what in outcome.what:
        print(f"  input: {what}")
    print(f"  {outcome.kind}, peak {outcome.peak / 1e6:.0f} MB: {outcome.detail}\n{outcome.trace}{outcome.output}")


if __name__ == "__main__":
    sys.exit(main())
