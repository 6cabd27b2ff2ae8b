"""The command line. Each command is a module of this package. It is imported when it is called, so help is fast."""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import os
import sys
from typing import NoReturn, TextIO

import click

from l4export import __version__
from l4export.cli.explain import UNREAD, explain
from l4export.errors import L4Error

__all__ = ["main"]

_COMMANDS = {
    "sample": "Write a seeded sample checkpoint in Hugging Face layout.",
    "inspect": "Show the architecture, dtypes and sizes of a checkpoint or an engine.",
    "plan": "Show which weights, KV caches and context lengths fit a device.",
    "build": "Build an engine directory from a checkpoint.",
    "parity": "Compare an engine with PyTorch on the same weights.",
    "quality": "Measure how much quality an engine loses on a text, and which weights cause it.",
    "run": "Generate text or tokens with an engine.",
    "bench": "Measure the speed of an engine, its memory and its use of the memory bandwidth.",
    "verify": "Check every file of an engine against its manifest.",
    "native": "Show where the native library for C and C++ is, and how to link with it.",
}


class _LazyGroup(click.Group):
    """A group that lists its commands without importing them. A command is imported when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"l4export.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="l4export")
def _group() -> None:
    """Compile Llama 4 checkpoints into inference engines and prove that they compute what PyTorch computes.

    Exit codes: 0 done; 1 parity or verification failed, or nothing fits; 2 bad usage or bad input; 3 the environment
    lacks a package, provider or driver; 4 reading or writing failed; 5 nothing could be judged.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit. This is the entry point. Every failure is one line on standard error.

    `arguments` are those of the command line; None means `sys.argv`.
    """
    if arguments is None:
        gc.set_threshold(100_000)  # otherwise imports start the collector 400 times, which takes a fifth of a second
        atexit.register(gc.freeze)  # otherwise it visits all objects again at exit, which takes half a second
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(
                errors="backslashreplace"
            )  # paths and tokens may have characters that cannot be encoded
    try:
        if arguments is None and sys.argv[1:2] in (["run"], ["bench"]):
            from l4export.runtimes.onnxruntime.huge_pages import restart_with_huge_pages

            restart_with_huge_pages()
        # `_group.main` is not used, because it prints its own lines about an interruption.
        given = sys.argv[1:] if arguments is None else list(arguments)
        with _group.make_context("l4export", list(given), obj=given) as context:
            _group.invoke(context)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except BrokenPipeError:
        _leave_unread(sys.stdout)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich exits with 1, which means a failed check here
            _leave_unread(sys.stdout)
        raise
    except (KeyboardInterrupt, Exception) as error:
        if not isinstance(error, _EXPECTED) and os.environ.get("L4EXPORT_TRACEBACK"):
            raise
        message, code = explain(error)
        try:
            click.echo(f"l4export: {message}", err=True)
        except OSError:  # the log is closed or full, but there is still the exit code
            _discard(sys.stderr)
        sys.exit(code)
    sys.exit(0)


def _leave_unread(stream: TextIO) -> NoReturn:
    """Exit like a program that SIGPIPE ended. Nobody reads the output any more, and the work may be unfinished."""
    _discard(stream)
    sys.exit(UNREAD)


def _discard(stream: TextIO) -> None:
    """Discard what is still buffered, because Python would fail to write it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


_EXPECTED = (L4Error, click.ClickException, click.Abort, KeyboardInterrupt, OSError, MemoryError)
