"""`l4export native`: it finds what pip has installed, and what it prints is enough to compile and to run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native_library import SOURCE, build_native, run

from l4export import __version__

PROGRAM = """
#include <l4export.h>
#include <stdio.h>
int main(void) { puts(l4_version()); }
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for PYTHONPATH that holds the package as its wheel does."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(SOURCE / "python/l4export_native", site / "l4export_native")
    run("cmake", "--install", build_native(), "--prefix", site / "l4export_native")
    return site


def native(site: Path, *options: str) -> subprocess.CompletedProcess[str]:
    python_path = os.pathsep.join([str(site), *filter(None, sys.path)])
    command = [sys.executable, "-m", "l4export", "native", *options]
    variables = {**os.environ, "PYTHONPATH": python_path}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def test_what_it_prints_compiles_links_and_runs(site: Path, tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(PROGRAM)
    flags = shlex.split(native(site, "--cflags", "--libs").stdout)
    run("cc", "main.c", *flags, "-o", "main", cwd=tmp_path)
    assert run(tmp_path / "main").strip() == __version__


def test_its_paths_are_there(site: Path) -> None:
    facts = json.loads(native(site, "--json").stdout)
    assert Path(facts["path"]) == site / "l4export_native" == Path(native(site, "--path").stdout.strip())
    assert (Path(facts["include"]) / "l4export.h").is_file() and Path(facts["library"]).is_file()
    assert (Path(facts["path"]) / "lib/cmake/l4export/l4exportConfig.cmake").is_file()
    assert Path(facts["onnxruntime"]).is_file()
    assert native(site, "--onnxruntime").stdout.strip() == facts["onnxruntime"]
    shown = native(site).stdout
    assert all(str(facts[name]) in shown for name in ("path", "include", "library", "l4run", "onnxruntime"))


@pytest.mark.parametrize("package", [None, "without a library"])
def test_without_the_library_it_says_how_to_get_it(tmp_path: Path, package: str | None) -> None:
    if package:
        shutil.copytree(SOURCE / "python/l4export_native", tmp_path / "l4export_native")
    done = native(tmp_path, "--path")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1 and "pip install ./runtimes/cpp" in done.stderr
