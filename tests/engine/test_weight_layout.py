"""The order of experts' codes on CUDA: by its definition, and by ONNX Runtime's own packing function."""

from __future__ import annotations

import numpy as np
import pytest
from mixed_gemm_definition import as_bytes, packed_order, plain_order

from l4export.engine.weight_layout import fits, pack, rows_together, unpack

SHAPES = [(16, 64), (16, 128), (32, 64), (48, 192), (64, 320), (128, 128)]


def random_codes(n: int, k: int, bits: int) -> np.ndarray:
    return np.random.default_rng(n * k + bits).integers(0, 2**bits, (n, k))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_definition_moves_every_code_once(n: int, k: int, bits: int) -> None:
    places = packed_order(np.arange(n * k).reshape(n, k), bits)
    np.testing.assert_array_equal(np.sort(places), np.arange(n * k))
    codes = random_codes(n, k, bits)
    np.testing.assert_array_equal(plain_order(packed_order(codes, bits), n, k, bits), codes)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_packing_is_what_the_definition_says(n: int, k: int, bits: int) -> None:
    codes = random_codes(n, k, bits)
    stored = as_bytes(codes, bits)
    packed = pack(stored, bits)
    np.testing.assert_array_equal(packed.reshape(-1), as_bytes(packed_order(codes, bits), bits))
    assert packed.shape == stored.shape and not np.array_equal(packed, stored)
    np.testing.assert_array_equal(unpack(packed, bits), stored)


@pytest.mark.parametrize("bits", [4, 8])
def test_experts_and_rows_are_packed_piece_by_piece(bits: int) -> None:
    """As emission does it: the bytes of whole experts, and of rows that are packed together, stand alone."""
    experts = np.stack([as_bytes(random_codes(64, 192, bits) // (1 + i), bits) for i in range(3)])
    whole = pack(experts, bits)
    for expert, packed in zip(experts, whole, strict=True):
        for first in range(0, 64, step := 3 * rows_together(bits)):
            np.testing.assert_array_equal(pack(expert[first : first + step], bits), packed[first : first + step])
    np.testing.assert_array_equal(unpack(whole, bits), experts)


def test_what_has_no_such_order() -> None:
    assert fits(16, 64, 4) and fits(10240, 5120, 8)
    assert not fits(8, 64, 4) and not fits(16, 96, 4) and not fits(16, 64, 2)


SCOUT = [pytest.param(16384, 5120, marks=pytest.mark.slow), pytest.param(5120, 8192, marks=pytest.mark.slow)]
"""The two matrices of an expert."""


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("n", "k"), [*SHAPES, (256, 512), (1024, 640), *SCOUT])
def test_onnxruntime_packs_the_same_bytes(n: int, k: int, bits: int) -> None:
    """onnxruntime brings its packing function in PyTorch, which its own tests hold against the kernels on a GPU."""
    pytest.importorskip("torch")
    packer = pytest.importorskip("onnxruntime.quantization.cuda_quantizer")
    stored = as_bytes(random_codes(n, k, bits), bits)
    theirs = packer._pack_weights_for_cuda_mixed_gemm(stored, n, k, bits, 80)
    np.testing.assert_array_equal(pack(stored, bits).reshape(-1), theirs.view(np.uint8))
