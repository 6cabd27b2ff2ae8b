"""Where the commands that measure put their reports: `--json`, and files by `-o`."""

from __future__ import annotations

import datetime
import itertools
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from l4export.cli.explain import explain
from l4export.errors import InputError, L4Error

if TYPE_CHECKING:
    from l4export.reports.document import Document, Kind
    from l4export.reports.identity import Identity

__all__ = ["ReportCommand", "Reporting", "allow_unjudged_option", "exit_code_of", "report_options"]

_NAMES = ("-o", "--report")


def report_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with `-o` and `--json`, the arguments `files` and `as_json`."""
    where = click.option(
        *_NAMES,
        "files",
        multiple=True,
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Write the report to this file, in the form that its name ends in. May be given several times.",
    )
    printed = click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON document.")
    return where(printed(command))


allow_unjudged_option = click.option(
    "--allow-unjudged", is_flag=True, help="End with exit code 0 also where nothing could be judged."
)


def exit_code_of(verdict: str, allow_unjudged: bool) -> int:
    """The exit code of a command with this verdict."""
    return {"failed": 1, "not judged": 0 if allow_unjudged else 5}.get(verdict, 0)


class ReportCommand(click.Command):
    """A command with `-o`. A mistake in its options, too, leaves an error in these files, and no other run's report."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Do what click does, and report what it refuses."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            with Reporting(_kind(self.name, "--stream" in given), _files_in(given), context=ctx):
                _refuse_old_spelling(given, error)
                raise


def _refuse_old_spelling(given: Sequence[str], error: click.UsageError) -> None:
    """Say what `--json FILE` of parity and `--html FILE` of quality have become, if that is what was refused."""
    extra = "unexpected extra argument" in error.format_message()
    if any(each.startswith("--json=") for each in given) or ("--json" in given and extra):
        raise InputError("--json: prints the report and takes no file; write it to one with -o FILE.json") from error
    if any(each.partition("=")[0] == "--html" for each in given):
        raise InputError("--html: is now -o; write a page with -o FILE.html") from error


def _files_in(given: Sequence[str]) -> list[Path]:
    """The files of `-o` in arguments that cannot be parsed."""
    apart = [file for name, file in itertools.pairwise(given) if name in _NAMES]
    joined = [each.removeprefix(start) for start in ("-o", "--report=") for each in given if each.startswith(start)]
    return [Path(file) for file in (*apart, *joined) if file]


def _kind(command: str | None, stream: bool) -> Kind:
    kinds: dict[str | None, Kind] = {"quality": "quality", "bench": "bench"}
    return kinds.get(command, "parity --stream" if stream else "parity")


class Reporting:
    """The files of one run. From its beginning they hold no other run's report, and at its end its own.

    Until then they say that the run has not ended: this shows at once whether they can be written, and is what is left
    if the program is killed. An error that leaves the `with` block is written to them, and that one of them is refused
    to all others. With `as_json` the report is printed, too.

    Raises:
        InputError: a file has a suffix of no form, or is not a report and would be lost.
        EnvironmentLacks: a package is missing that a form needs.
        StorageError: a file cannot be written.
    """

    def __init__(
        self, kind: Kind, files: Sequence[Path], as_json: bool = False, context: click.Context | None = None
    ) -> None:
        from l4export.reports.document import MARK
        from l4export.reports.forms import form_of
        from l4export.storage.whole_file import check_replaceable

        context = context or click.get_current_context()
        self._kind, self._as_json = kind, as_json
        self._command = shlex.join(["l4export", *(context.find_root().obj or ())])
        self._began, self._start = datetime.datetime.now(datetime.UTC), time.monotonic()
        self._forms: list[tuple[Path, Callable[[Document], str]]] = []
        self._finished = False
        refused: list[L4Error] = []
        for file in files:
            try:
                form = form_of(file)
                check_replaceable(file, MARK)
                self._forms.append((file, form))
            except L4Error as error:
                refused.append(error)
        if refused:
            self._write_error(*explain(refused[0]))
            raise refused[0]

    def __enter__(self) -> Reporting:
        if self._forms:
            self._write_error("the run has not ended: it is still going on, or was killed", 70)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and self._forms and not self._finished:
            self._write_error(*explain(error))

    def identity(self) -> Identity:
        """The program, the machine, the command, and the time since its beginning."""
        from l4export.evidence.identity import this_program
        from l4export.reports.identity import Identity

        began = self._began.isoformat(timespec="seconds").replace("+00:00", "Z")
        return Identity(this_program(), self._command, began, round(time.monotonic() - self._start, 3))

    @property
    def wanted(self) -> bool:
        """Whether a report is written or printed at all."""
        return bool(self._forms) or self._as_json

    def finish(self, document: Document) -> None:
        """Write the report to all files, and print it if it is asked for."""
        from l4export.reports.json_form import as_json

        self._write(document)
        self._finished = True
        if self._as_json:
            click.echo(as_json(document), nl=False)

    def _write_error(self, message: str, code: int) -> None:
        from l4export.reports.document import error_document

        self._write(error_document(self._kind, message, code, self.identity()))

    def _write(self, document: Document) -> None:
        from l4export.storage.whole_file import replace_file

        for file, form in self._forms:
            replace_file(file, form(document))
