"""`l4export native`: it finds what pip has installed, and what it prints is enough to compile and to run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from l4export import __version__
from native_library import SOURCE, native_site, run

PROGRAM = """
#include <l4export.h>
#include <stdio.h>
int main(void) { puts(l4_version()); }
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return native_site(tmp_path_factory.mktemp("site"))


def native(site: dict[str, str], *options: str) -> str:
    return run("l4export", "native", *options, **site).strip()


def test_what_it_prints_compiles_links_and_runs(site: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(PROGRAM)
    run("sh", "-c", "cc main.c $(l4export native --cflags --libs) -o main", cwd=tmp_path, **site)
    assert run(tmp_path / "main").strip() == __version__


def test_its_paths_are_there(site: dict[str, str]) -> None:
    facts = json.loads(native(site, "--json"))
    assert (Path(facts["include"]) / "l4export.h").is_file()
    assert Path(facts["library"]).is_file() and Path(facts["kernels"]).is_file()
    assert (Path(facts["path"]) / "lib/cmake/l4export/l4exportConfig.cmake").is_file()
    assert Path(facts["onnxruntime"]).is_file()
    assert native(site, "--path", "--onnxruntime") == f"{facts['path']} {facts['onnxruntime']}"
    assert all(
        str(facts[name]) in native(site) for name in ("path", "include", "library", "kernels", "l4run", "onnxruntime")
    )


@pytest.mark.parametrize("package", [None, "without a library"])
def test_without_the_library_it_says_how_to_get_it(tmp_path: Path, package: str | None) -> None:
    """A wheel that was built without a compiler has no library."""
    if package:
        shutil.copytree(SOURCE / "python/l4export_native", tmp_path / "l4export_native")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import l4export.cli; l4export.cli.main(['native'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1 and "pip install ./runtimes/cpp" in done.stderr


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (None, "this wheel was built where there was no C++ compiler"),
        (b"of another machine", "cannot be executed (Exec format error)"),
        (b"#!/nowhere/at/all\n", "cannot be executed (No such file or directory)"),
    ],
)
def test_an_l4run_that_cannot_be_started(tmp_path: Path, program: bytes | None, why: str) -> None:
    package = shutil.copytree(SOURCE / "python/l4export_native", tmp_path / "l4export_native")
    if program is not None:
        (package / "bin").mkdir()
        (package / "bin/l4run").write_bytes(program)
        (package / "bin/l4run").chmod(0o755)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import l4export_native; l4export_native.run_l4run()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("l4run: ") and why in done.stderr and done.stderr.count("\n") == 1
