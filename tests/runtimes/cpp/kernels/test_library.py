"""libl4cpu as a file: what it needs and exports, and that no instruction set's code is taken for another's."""

from __future__ import annotations

import re

from cpu_kernel_library import INSTRUCTION_SETS, instruction_sets, kernel_library_path

from native_library import run


def test_it_needs_nothing_but_libc() -> None:
    needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", kernel_library_path()))
    assert needed and all(re.match(r"(libc|libm|ld-linux.*)\.so\.\d", name) for name in needed), needed


def test_it_is_small() -> None:
    assert kernel_library_path().stat().st_size < 1 << 20


def test_it_exports_its_interface_alone() -> None:
    names = [line.split()[-1] for line in run("nm", "-D", "--defined-only", kernel_library_path()).splitlines()]
    assert "RegisterCustomOps" in names
    assert all(name == "RegisterCustomOps" or name.startswith("l4cpu_") for name in names), names


def test_files_of_instruction_sets_share_no_function() -> None:
    """A function that several files define, compiled for several instruction sets, would be the linker's to choose."""
    objects = list((kernel_library_path().parent / "CMakeFiles/l4cpu.dir/isa").glob("*.o"))
    assert len(objects) >= 2
    for file in objects:
        symbols = [line.split() for line in run("nm", "-C", file).splitlines()]
        shared = [s for s in symbols if len(s) >= 3 and s[1] in {"W", "V", "u"}]
        assert not shared, (file.name, shared)


def test_the_tests_know_all_instruction_sets() -> None:
    assert set(instruction_sets()) <= set(INSTRUCTION_SETS)
