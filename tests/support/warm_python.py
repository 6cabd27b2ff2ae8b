"""Runs commands and scripts in fresh processes that have imported the slow packages already.

Each is forked from one server, which has done nothing but import; so they are as separate as processes are, and start
in milliseconds instead of seconds.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

_PRELOADED = (
    "l4export.cli",
    "l4export.compiler.build",
    "l4export.parity.by_layer",
    "l4export.parity.whole_model",
    "l4export.quality.measure",
    "l4export.quantization.kernels",
    "l4export.runtimes.onnxruntime.engine",
    "l4export.sizing.memory_plan",
    "onnxruntime",
    "torch",
    "transformers.models.llama4.modeling_llama4",
)


def run_command(arguments: list[str], directory: Path) -> tuple[int, str]:
    """`l4export` with these arguments in a directory: its exit code, and what it wrote to both outputs."""
    return _run(_command, arguments, directory)


def run_script(text: str, directory: Path) -> tuple[int, str]:
    """A Python script, as `run_command`."""
    return _run(_script, text, directory)


@functools.cache
def _server() -> ForkServerContext:
    """One thread each: tests run side by side, and threads would wait for each other."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *_PRELOADED])
    return context


def _run(target: Callable[..., None], what: object, directory: Path) -> tuple[int, str]:
    output = directory / ".output"
    process = _server().Process(target=_redirected, args=(target, what, directory, output))
    process.start()
    process.join()
    assert process.exitcode is not None
    text = output.read_text(encoding="utf-8")
    output.unlink()
    return process.exitcode, text


def _redirected(target: Callable[..., None], what: object, directory: Path, output: Path) -> None:
    os.chdir(directory)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        target(what)
    except Exception:  # the process would end, but say nothing that is read
        traceback.print_exc()
        raise


def _command(arguments: list[str]) -> None:
    from l4export.cli import main

    sys.argv = ["l4export", *arguments]
    sys.orig_argv = [sys.executable, "-m", "l4export", *arguments]  # some commands start themselves again
    main()


def _script(text: str) -> None:
    sys.path.insert(0, "")  # as `python -c` has it
    exec(compile(text, "example", "exec"), {"__name__": "__main__"})
