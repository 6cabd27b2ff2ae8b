"""The program's digest: code that decides an engine's bytes changes it, other code does not."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import grimp
import pytest

from l4export.compiler import provenance
from l4export.compiler.provenance import PROGRAM, program_digest
from workshop import ROOT


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package as an installation has it: no symbolic links."""
    return Path(shutil.copytree(ROOT / "l4export", tmp_path / "l4export", ignore=shutil.ignore_patterns("__pycache__")))


def test_a_checkout_and_an_installation_give_the_same_digest(copy: Path) -> None:
    assert not (copy / "passes").is_symlink()
    assert program_digest(copy) == program_digest(ROOT / "l4export") == program_digest()


def test_a_wheel_gives_the_same_digest(tmp_path: Path) -> None:
    """Built by setuptools from this checkout, as `pip wheel` does."""
    from setuptools import build_meta

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(_sources(tmp_path / "sources"))
        wheel = build_meta.build_wheel(str(tmp_path))
    with zipfile.ZipFile(tmp_path / wheel) as archive:
        archive.extractall(tmp_path / "installed")
    assert program_digest(tmp_path / "installed" / "l4export") == program_digest()


def _sources(target: Path) -> Path:
    """What a wheel is built from, without what lies about in a checkout."""
    shutil.copytree(ROOT / "l4export", target / "l4export", symlinks=True)
    for name in ("passes", "runtimes"):
        shutil.copytree(ROOT / name, target / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, target / name)
    return target


@pytest.mark.parametrize(
    "module", ["passes/fuse_experts.py", "runtimes/session.py", "calibration/kv_scales.py", "targets/__init__.py"]
)
def test_code_with_a_say_changes_the_digest(copy: Path, module: str) -> None:
    before = program_digest(copy)
    (copy / module).write_text((copy / module).read_text() + "# changed\n")
    assert program_digest(copy) != before


@pytest.mark.parametrize(
    "module", ["benchmark/measure.py", "cli/build.py", "parity/logits.py", "quality/measure.py", "errors.py"]
)
def test_other_code_does_not(copy: Path, module: str) -> None:
    before = program_digest(copy)
    (copy / module).write_text((copy / module).read_text() + "# changed\n")
    assert program_digest(copy) == before


def test_a_module_counts_by_its_name(copy: Path) -> None:
    before = program_digest(copy)
    (copy / "passes" / "fuse_experts.py").rename(copy / "passes" / "melt_experts.py")
    assert program_digest(copy) != before


def test_every_package_that_the_compiler_imports_has_a_say() -> None:
    """But errors, whose texts are in no engine, `native`, which says where a library is, and the version itself.
    Imports within functions count."""
    graph = grimp.build_graph("l4export")
    imported = graph.find_upstream_modules("l4export.compiler", as_package=True) | {"l4export.compiler"}
    packages = {name.split(".")[1] for name in imported if name != "l4export"}
    assert packages - {"errors", "native", "_version"} == set(provenance.PROGRAM)
    assert sorted(PROGRAM) == list(PROGRAM)
