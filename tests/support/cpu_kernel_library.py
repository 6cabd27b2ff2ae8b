"""libl4cpu as the tests use it: built from the working tree, called by ctypes or through ONNX Runtime."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
from pathlib import Path

import numpy as np
from cpu_kernel_definition import Matrix, Unit

from l4export.engine.cpu_weight_layout import CpuFormat, gate_up_order, pack_tiles
from native_library import SOURCE, build_native

TILES = SOURCE / "tests/kernels/emulated_tiles.hpp"
BUILDS = {
    "native": (),
    "kernels-emulated-tiles": (f"-DCMAKE_CXX_FLAGS=-include {TILES}",),
    "kernels-sanitized": (f"-DCMAKE_CXX_FLAGS=-include {TILES} -O1 -g1", "-DL4EXPORT_SANITIZE=address,undefined"),
}
"""Builds of the library, by the name of their directory: the usual one, one with AMX in plain C++, and that with
sanitizers."""

BUILD = "L4CPU_TEST_BUILD"
"""The environment variable that names the build which is tested."""


def kernel_library_path() -> Path:
    """libl4cpu.so, built; in seconds, as nothing else is."""
    name = os.environ.get(BUILD, "native")
    return build_native(name, *BUILDS[name], target="l4cpu") / "kernels" / "libl4cpu.so"


INSTRUCTION_SETS = ("scalar", "avx2", "avx2-vnni", "avx512", "avx512-vnni", "amx-int8", "neon-dotprod")
"""All that the library has kernels for."""


class Format(ctypes.Structure):
    """l4cpu_format."""

    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "columns", "bits", "block", "zero_points")]


@functools.cache
def kernel_library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(kernel_library_path()))
    library.l4cpu_isa.restype = ctypes.c_char_p
    return library


@functools.cache
def instruction_sets() -> list[str]:
    """Those that this processor runs, the fastest first."""
    names = map(kernel_library().l4cpu_isa, itertools.count())
    return [name.decode() for name in itertools.takewhile(lambda name: name is not None, names)]


class Tiles:
    """A matrix in the kernels' layout; its rows are put into `order` first."""

    def __init__(self, matrix: Matrix, zero_points: bool, order: np.ndarray | None = None) -> None:
        order = np.arange(len(matrix.codes)) if order is None else order
        codes = matrix.codes[order]
        n, k = codes.shape
        self.layout = CpuFormat(n, k, matrix.bits, matrix.block, zero_points)
        stored = codes if matrix.bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4
        zeros = matrix.zero_points[order] if zero_points else None
        self.array = aligned(pack_tiles(self.layout, np.ascontiguousarray(stored), matrix.scales[order], zeros))

    @property
    def format(self) -> Format:
        return format_of(self.layout)


def format_of(layout: CpuFormat) -> Format:
    return Format(layout.rows, layout.columns, layout.bits, layout.block_size, layout.zero_points)


def aligned(array: np.ndarray, offset: int = 0) -> np.ndarray:
    """A copy that starts `offset` bytes after a multiple of 64."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def random_matrix(rng: np.random.Generator, n: int, k: int, bits: int, block: int, zero_points: bool) -> Matrix:
    scales = ((rng.random((n, k // block)) + 0.1) * rng.choice([-0.01, 0.01], (n, k // block))).astype(np.float16)
    zeros = rng.integers(0, 2**bits, scales.shape) if zero_points else np.full(scales.shape, 2 ** (bits - 1))
    return Matrix(rng.integers(0, 2**bits, (n, k)).astype(np.uint8), scales, zeros.astype(np.uint8), bits)


def linear(isa: str, tiles: Tiles, x: np.ndarray, int8: bool, bias: np.ndarray | None = None) -> np.ndarray:
    y = np.full((len(x), tiles.layout.rows), 12345, np.float32)
    kernel_library().l4cpu_linear(
        *(isa.encode(), ctypes.byref(tiles.format), int(int8), pointer(tiles.array), pointer(x)),
        *(ctypes.c_int64(len(x)), None if bias is None else pointer(bias), pointer(y)),
    )
    return y


class MoeTiles:
    """The weights of `moe`: experts' and the shared expert's gate_up and down, as arrays for the operator."""

    def __init__(self, experts: list[Unit], shared: Unit | None, zero_points: bool) -> None:
        units = [*experts] if shared is None else [*experts, shared]
        gate_up = [Tiles(u.gate_up, zero_points, gate_up_order(len(u.gate_up.codes) // 2)) for u in units]
        down = [Tiles(u.down, zero_points) for u in units]
        count = len(experts)
        self.arrays = [aligned(np.stack([t.array for t in tiles[:count]])) for tiles in (gate_up, down)]
        self.layouts = [tiles[0].layout for tiles in (gate_up, down)]
        if shared is not None:
            self.arrays += [gate_up[-1].array, down[-1].array]
            self.layouts += [gate_up[-1].layout, down[-1].layout]


def moe(isa: str, tiles: MoeTiles, k: int, x: np.ndarray, logits: np.ndarray, int8: bool) -> np.ndarray:
    y = np.full_like(x, 12345)
    formats = (Format * 4)(*map(format_of, tiles.layouts))
    pointers = (ctypes.c_void_p * 4)(*(array.ctypes.data for array in tiles.arrays))
    kernel_library().l4cpu_moe(
        *(isa.encode(), formats, int(int8), ctypes.c_int64(logits.shape[1]), ctypes.c_int64(k), pointers),
        *(pointer(x), pointer(logits), ctypes.c_int64(len(x)), pointer(y)),
    )
    return y


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    """float32 arrays are equal, to the sign of a zero; any NaN is any other."""
    assert found.shape == expected.shape and found.dtype == expected.dtype == np.float32
    nan = np.isnan(found)
    np.testing.assert_array_equal(nan, np.isnan(expected))
    np.testing.assert_array_equal(found.view(np.int32)[~nan], np.ascontiguousarray(expected).view(np.int32)[~nan])


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)
