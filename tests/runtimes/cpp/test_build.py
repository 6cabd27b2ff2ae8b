"""The library as it is built and installed: what leaves it, and that C and C++ projects find and link it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from l4export import __version__
from native_library import SOURCE, build_native, native_library, run
from workshop import ROOT

PROGRAM = """
#include <l4export.h>
#include <stdio.h>
int main(void) {
  puts(l4_version());
  return l4_abi_version() != L4_ABI_VERSION;
}
"""
PROJECT = """
cmake_minimum_required(VERSION 3.18)
project(user LANGUAGES {language})
find_package(l4export 0.1 REQUIRED)
add_executable(user main.{suffix})
target_link_libraries(user PRIVATE l4export::l4export)
"""


def exported(library: Path) -> set[str]:
    return {line.split()[-1] for line in run("nm", "-D", "--defined-only", library).splitlines()}


def declared() -> set[str]:
    header = (SOURCE / "include/l4export.h").read_text(encoding="utf-8")
    return set(re.findall(r"^L4_API .*?\b(l4_\w+)\(", header, re.MULTILINE))


def test_what_the_header_declares_leaves_the_library_and_nothing_else() -> None:
    assert exported(build_native() / "libl4export.so") == declared()


@pytest.mark.parametrize("header", sorted(path.name for path in (SOURCE / "include/l4export").iterdir()))
def test_each_header_of_the_wrapper_includes_what_it_uses(header: str) -> None:
    flags = ("-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{SOURCE / 'include'}")
    run("c++", *flags, "-include", f"l4export/{header}", "-xc++", "/dev/null")


def test_one_version() -> None:
    assert native_library().l4_version().decode() == __version__


def test_the_licence_is_that_of_the_repository() -> None:
    assert (SOURCE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.fixture(scope="module", params=["shared", pytest.param("static", marks=pytest.mark.slow)])
def prefix(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, installed and moved elsewhere."""
    directory = tmp_path_factory.mktemp(request.param)
    build = build_native() if request.param == "shared" else build_native("native-static", "-DBUILD_SHARED_LIBS=OFF")
    run("cmake", "--install", build, "--prefix", directory / "there")
    return (directory / "there").rename(directory / "here")


@pytest.mark.parametrize(("language", "suffix"), [("C", "c"), ("CXX", "cpp")])
def test_a_project_of_cmake_finds_and_links_it(prefix: Path, tmp_path: Path, language: str, suffix: str) -> None:
    (tmp_path / f"main.{suffix}").write_text(PROGRAM)
    (tmp_path / "CMakeLists.txt").write_text(PROJECT.format(language=language, suffix=suffix))
    run("cmake", "-S", tmp_path, "-B", tmp_path / "b", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path / "b")
    assert run(tmp_path / "b/user").strip() == __version__


def test_pkg_config_says_how_to_link_it(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(PROGRAM)
    fields = dict(re.findall(r"^(\w+)[=:] *(.*)$", (prefix / "lib/pkgconfig/l4export.pc").read_text(), re.MULTILINE))
    variables = {"pcfiledir": str(prefix / "lib/pkgconfig")}
    for name in ("prefix", "includedir", "libdir"):
        variables[name] = expanded(fields[name], variables)
    flags = expanded(f"{fields['Cflags']} {fields['Libs']}", variables).split()
    run("cc", "main.c", *flags, f"-Wl,-rpath,{variables['libdir']}", "-o", "user", cwd=tmp_path)
    assert run(tmp_path / "user").strip() == fields["Version"] == __version__


def expanded(text: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda found: variables[found[1]], text)
