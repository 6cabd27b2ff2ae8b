"""A fresh Debian 12 with a compiler and CMake builds and runs the C++ examples by the commands of their pages.

There is no Python in it. Brought along are what the pages take from elsewhere: an engine, and ONNX Runtime's library.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_packages import install
from example_pages import commands, packages

import l4export
from native_library import ONNXRUNTIME, run
from workshop import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root, with the repository in /l4export."""
    install("debootstrap")
    root = tmp_path_factory.mktemp("debian")
    run("debootstrap", "--variant=minbase", "bookworm", root)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    files = run("git", "ls-files", "runtimes/cpp", "examples", cwd=ROOT).splitlines()
    for file in files:
        (root / "l4export" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, root / "l4export" / file)
    (root / "l4export/engines").mkdir()
    l4export.build(ROOT / "examples/kjv/model", root / "l4export/engines/kjv")
    shutil.copy(ONNXRUNTIME, root / "usr/local/lib/libonnxruntime.so.1")
    in_root(root, "ldconfig")
    yield root
    shutil.rmtree(root)


def command_in(root: Path, *command: str) -> list[str]:
    """A command in the root, which has a /proc while that lasts: ONNX Runtime opens the files of weights through it."""
    mount = f'mount --bind /proc "{root}/proc"; exec chroot "{root}" "$@"'
    return ["unshare", "--mount", "sh", "-ec", mount, "-", *command]


def in_root(root: Path, commands: str) -> str:
    return run(*command_in(root, "sh", "-ec", f"cd /l4export; {commands}"), PATH="/usr/sbin:/usr/bin:/sbin:/bin")


def test_cpp_embed(root: Path) -> None:
    in_root(root, f"apt-get -qq update; apt-get -qq install {' '.join(packages('cpp_embed'))}")
    said = [in_root(root, block) for block in commands("cpp_embed")][-1]
    assert "In the beginning" in said and len(said.splitlines()[-1].split()) > 20


def test_cpp_service(root: Path) -> None:
    in_root(root, f"apt-get -qq update; apt-get -qq install {' '.join(packages('cpp_service'))}")
    for block in commands("cpp_service"):
        in_root(root, block)
    program, engine = "/l4export/build/service/cpp_service", "/l4export/engines/kjv"
    command = command_in(root, program, engine, "--port", "0")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            body = json.dumps({"model": "kjv", "prompt": "In the beginning", "max_tokens": 4}).encode()
            with urllib.request.urlopen(f"{url}/v1/completions", body) as answer:
                assert json.load(answer)["usage"]["completion_tokens"] == 4
        finally:
            process.terminate()
    assert process.returncode == 0
