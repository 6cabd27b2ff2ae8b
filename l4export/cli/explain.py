"""What a person is told of a failure, in one line, and the exit code."""

from __future__ import annotations

import click

from l4export.errors import L4Error

__all__ = ["INTERRUPTED", "UNREAD", "explain"]

INTERRUPTED = 130
UNREAD = 141
"""As of a program that SIGPIPE ended."""
_INTERNAL_ERROR = 70


def explain(error: BaseException) -> tuple[str, int]:
    """Return the message for a failure, and the exit code."""
    message, code = _explain(error)
    return " ".join(message.split()), code


def _explain(error: BaseException) -> tuple[str, int]:
    match error:
        case L4Error():
            return str(error), error.exit_code
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else "l4export"
            return f"{error.format_message()} See `{command} --help`.", 2
        case click.ClickException():
            return error.format_message(), 2
        case KeyboardInterrupt() | click.Abort():
            return "interrupted; no unfinished file was left under its final name", INTERRUPTED
        case BrokenPipeError():
            return "the reader of the output has gone, so the work may be unfinished", UNREAD
        case OSError():
            return f"{error.filename or 'input or output'}: {error.strerror or error}; check the path and the disk", 4
        case MemoryError():
            return "out of memory; close other programs or use a smaller model, batch or context", 4
        case _:
            what = f"{type(error).__name__}: {error}"
            return f"internal error: {what}; please report it, with L4EXPORT_TRACEBACK=1 set", _INTERNAL_ERROR
