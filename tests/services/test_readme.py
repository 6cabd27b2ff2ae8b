"""Every command on the page of the Python service, in the order in which a reader meets them."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from workshop import ROOT

PAGE = (ROOT / "examples/http_service/README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
INSTALL, SERVE, ASK, CLIENT = (text for _, text in BLOCKS)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


@contextmanager
def served(directory: Path, python: str, port: int, **environment: str) -> Iterator[None]:
    """The service as the page starts it, on another port."""
    (command,) = SERVE.replace("8000", str(port)).splitlines()
    words = [python if word == ".venv/bin/python" else word for word in shlex.split(command)]
    process = subprocess.Popen(
        words, cwd=directory, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == f"listening on http://127.0.0.1:{port}\n"
        yield
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def follow(directory: Path, install: list[str], bin_path: Path, **environment: str) -> None:
    """Install, serve and ask; `bin_path` is what stands for `.venv/bin`."""

    def run(command: str) -> str:
        settings = {**os.environ, **environment}
        done = subprocess.run(
            command, shell=True, cwd=directory, stdout=subprocess.PIPE, text=True, env=settings, check=True
        )
        return done.stdout

    for command in install:
        run(command.replace(".venv/bin/", f"{bin_path}/"))
    port = free_port()
    with served(directory, str(bin_path / "python"), port, **environment):
        models, answer, metrics = (run(line) for line in ASK.replace("8000", str(port)).splitlines())
        assert '"id": "shapes"' in models and '"chat.completion"' in answer and "l4export_rows 8" in metrics
        client = [sys.executable, "-c", CLIENT.replace("8000", str(port))]
        assert subprocess.run(client, cwd=directory, stdout=subprocess.PIPE, text=True, check=True).stdout == "2\n"


def test_commands_run(tmp_path: Path) -> None:
    """All but those that install."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    _, _, *build = INSTALL.splitlines()
    follow(tmp_path, build, Path(sys.executable).parent, PYTHONPATH=str(ROOT))


@pytest.mark.slow
def test_commands_run_from_nothing(tmp_path: Path) -> None:
    """In a copy of the repository, with an environment of its own."""
    for name in ("l4export", "runtimes", "passes", "examples", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-R", str(ROOT / name), str(tmp_path / name)], check=True)
    commands = INSTALL.replace("python3 -m venv", f"{sys.base_prefix}/bin/python3 -m venv").splitlines()
    follow(tmp_path, commands, tmp_path / ".venv/bin", PYTHONPATH="")
