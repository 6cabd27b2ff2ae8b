"""The kernels of aarch64, compiled by zig and run by qemu: the bits of this machine's scalar kernels."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cpu_kernel_library import Tiles, assert_same_bits, linear, random_matrix

from native_library import SOURCE, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-user is not installed"),
]
KERNELS = SOURCE / "kernels"
F32 = np.float32


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("aarch64")
    run(sys.executable, "-m", "venv", out / "venv")
    run(out / "venv/bin/pip", "install", "--quiet", "ziglang")
    sources = [
        KERNELS / f"{name}.cpp"
        for name in ("c_api", "choice", "gated", "linear", "moe", "routing", "trial", "isa/scalar")
    ]
    compiler = [out / "venv/bin/python", "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", "-static"]
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{KERNELS}"]
    run(*compiler, *flags, "-mcpu=generic+dotprod", "-c", KERNELS / "isa/neon.cpp", "-o", out / "neon.o")
    run(*compiler, *flags, *sources, SOURCE / "tests/kernels/run_cases.cpp", out / "neon.o", "-o", out / "run_cases")
    return out / "run_cases"


@pytest.mark.parametrize("isa", ["neon-dotprod", "scalar"])
def test_same_bits_as_here(program: Path, isa: str) -> None:
    rng = np.random.default_rng(0)
    cases, expected = [], []
    for n, k, block in [(64, 96, 32), (33, 64, 16), (7, 192, 64), (50, 384, 128)]:
        for bits in (4, 8):
            for zero_points in (False, True):
                tiles = Tiles(random_matrix(rng, n, k, bits, block, zero_points), zero_points)
                x = (rng.standard_normal((40, k)) * np.exp2(rng.integers(-9, 9, (40, 1)))).astype(F32)
                x[3], x[4, 0], x[5, 0], x[6] = 0, np.inf, np.nan, rng.integers(0, 1 << 32, k, np.uint32).view(F32)
                for count in (1, 2, 3, 5, 8, 17, 40):
                    for int8 in (True, False):
                        head = np.asarray([n, k, bits, block, zero_points, int8, count], np.int64)
                        cases.append(head.tobytes() + tiles.array.tobytes() + x[:count].tobytes())
                        expected.append(linear("scalar", tiles, x[:count], int8).reshape(-1))
    command = ["qemu-aarch64", program, isa]
    done = subprocess.run(command, input=b"".join(cases), capture_output=True, check=True, timeout=600)
    assert done.stderr.split() == [b"neon-dotprod", b"scalar"]
    assert_same_bits(np.frombuffer(done.stdout, F32), np.concatenate(expected))
