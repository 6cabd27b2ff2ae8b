"""The wheels that zig makes for x86-64 and aarch64: what they need, and that l4run of each decodes as Python does."""

from __future__ import annotations

import json
import os
import re
import sys
import zipfile
from pathlib import Path

import pytest
from debian_packages import install

import l4export
from l4export import __version__
from native_library import ONNXRUNTIME, SOURCE, onnxruntime_headers, run
from workshop import ROOT

pytestmark = pytest.mark.slow
MACHINES = {"x86_64": "Advanced Micro Devices X86-64", "aarch64": "AArch64"}
GLIBC = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the wheels' contents, by machine."""
    out = tmp_path_factory.mktemp("wheels")
    run(sys.executable, "-m", "venv", out / "venv")
    run(out / "venv/bin/pip", "install", "--quiet", "ziglang")
    path = f"{out}/venv/bin:/usr/bin:/bin"
    run(SOURCE / "release_wheels.sh", out, PATH=path, ONNXRUNTIME_INCLUDE_DIR=str(onnxruntime_headers()))
    for machine in MACHINES:
        (wheel,) = out.glob(f"l4export_native-{__version__}-py3-none-manylinux_2_28_{machine}.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(out / machine)
        (out / machine / "l4export_native/bin/l4run").chmod(0o755)
    return out


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["lib/libl4export.so", "lib/libl4cpu.so", "bin/l4run"])
def test_they_need_glibc_2_28_and_nothing_else(unpacked: Path, machine: str, name: str) -> None:
    file = unpacked / machine / "l4export_native" / name
    said = run("readelf", "--file-header", "--dynamic", "--version-info", "--wide", file)
    assert f"Machine:                           {MACHINES[machine]}" in said
    assert set(re.findall(r"\(NEEDED\).*\[(.*)\]", said)) <= GLIBC
    versions = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([0-9.]+)", said)}
    assert versions and max(versions) <= (2, 28)
    assert "GLIBCXX" not in said


@pytest.fixture(scope="module")
def kjv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    engine = tmp_path_factory.mktemp("engine") / "kjv"
    l4export.build(ROOT / "examples/kjv/model", engine)
    return engine


def test_l4run_of_this_machine(unpacked: Path, kjv: Path) -> None:
    check_l4run([unpacked / "x86_64/l4export_native/bin/l4run"], ONNXRUNTIME, kjv)


def test_l4run_of_aarch64(unpacked: Path, kjv: Path) -> None:
    """In qemu, with Debian's C library for that machine and the library of onnxruntime's wheel for it."""
    install("qemu-user", "libc6-arm64-cross", "libstdc++6-arm64-cross", "libgcc-s1-arm64-cross")
    download = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:")
    wanted = ("--platform", "manylinux_2_28_aarch64", "--constraint", ROOT / "constraints.txt", "onnxruntime")
    run(*download, *wanted, cwd=unpacked)
    (wheel,) = unpacked.glob("onnxruntime-*aarch64.whl")
    with zipfile.ZipFile(wheel) as archive:
        (library,) = (name for name in archive.namelist() if "capi/libonnxruntime.so" in name)
        archive.extract(library, unpacked)
    l4run = unpacked / "aarch64/l4export_native/bin/l4run"
    check_l4run(["qemu-aarch64", "-L", seen_by_qemu(unpacked / "root"), l4run], unpacked / library, kjv)


def seen_by_qemu(root: Path) -> Path:
    """What an emulated program sees first: Debian's libraries, and a processor of its own kind. Where it reads of
    another kind, ONNX Runtime 1.31.1 follows a null pointer."""
    (root / "proc").mkdir(parents=True)
    (root / "lib").symlink_to("/usr/aarch64-linux-gnu/lib")
    (root / "proc/cpuinfo").write_text("".join(NEOVERSE_N1.format(core) for core in range(os.cpu_count() or 1)))
    return root


NEOVERSE_N1 = """processor : {}
Features : fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer : 0x41
CPU architecture: 8
CPU variant : 0x3
CPU part : 0xd0c
CPU revision : 1

"""


def check_l4run(l4run: list[Path | str], onnxruntime: Path, engine: Path) -> None:
    """Its version, the ids that its tokenizer makes, and what it says greedily."""
    assert run(*l4run, "--version").split()[-1] == __version__
    options = ("--prompt", "In the beginning", "--max-new-tokens", "12", "--json")
    said = json.loads(run(*l4run, engine, *options, L4EXPORT_ONNXRUNTIME=str(onnxruntime)))
    python = l4export.load(engine)
    generation = python.generate(python.text.encode("In the beginning"), max_new_tokens=12)
    assert said["token_ids"] == list(generation)
    assert said["text"] == generation.text
