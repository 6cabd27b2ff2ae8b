"""silu(gate) * up of libl4cpu, and the arithmetic of the definition."""

from __future__ import annotations

import ctypes
import math
import random
from fractions import Fraction

import cpu_kernel_definition as definition
import numpy as np
from cpu_kernel_library import assert_same_bits, kernel_library, pointer
from exact_float import fma

F32 = np.float32


def gated(isa: str, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    h = np.empty_like(gate)
    kernel_library().l4cpu_gate(isa.encode(), pointer(gate), pointer(up), ctypes.c_int64(len(gate)), pointer(h))
    return h


def all_kinds_of_floats(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    special = np.asarray(
        [0, -0.0, 1e-45, -1e-40, 87, 88, 88.1, 89, -87, -88, -88.1, 1e38, -1e38, np.inf, -np.inf, np.nan]
    )
    usual = rng.uniform(-100, 100, count - 2 * len(special))
    any_bits = rng.integers(0, 2**32, len(special), np.uint32).view(F32)
    return np.concatenate([special.astype(F32), any_bits, usual.astype(F32)])


def test_bits_of_the_definition(isa: str) -> None:
    gate = all_kinds_of_floats(16 << 12)
    up = np.roll(gate, 7)
    assert_same_bits(gated(isa, gate, up), definition.gated(gate, up))


def test_the_exponential_is_within_two_units_in_the_last_place() -> None:
    x = np.linspace(-87, 88, 2_000_001, dtype=F32)
    exact, found = np.exp(x.astype(np.float64)), definition.exponential(x)
    assert np.max(np.abs(found - exact) / np.spacing(exact.astype(F32))) < 2


def test_silu_far_from_zero() -> None:
    """Neither a large negative gate leaves something behind, nor a large positive one loses a bit."""
    gate = np.asarray([-1e38, -1e4, -89, 89, 1e4, 1e38], F32)
    np.testing.assert_array_equal(definition.gated(gate, np.ones(6, F32)), [0, 0, 0, 89, 1e4, F32(1e38)])


def test_fma_of_the_definition_rounds_once() -> None:
    """Against fractions, on numbers made to lie near the middle of two floats."""
    draw = random.Random(0)
    for _ in range(3000):
        a, b = (
            F32(draw.choice([-1, 1]) * draw.randrange(1, 1 << 24) * 2.0 ** draw.randrange(-80, 40)) for _ in range(2)
        )
        c = F32(-float(a) * float(b) * (1 + draw.choice([0, 2.0**-24, 2.0**-25, 3 * 2.0**-24, 1, -2, 2.0**-50])))
        if draw.random() < 0.5:
            c = F32(math.ldexp(draw.randrange(1 << 24), draw.randrange(-140, 60)))
        with np.errstate(over="ignore"):
            found = fma(a, b, c)
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        candidates = [np.nextafter(found, F32(-np.inf)), found, np.nextafter(found, F32(np.inf))]
        if np.isfinite(candidates).all():
            distance = [abs(Fraction(float(candidate)) - exact) for candidate in candidates]
            assert distance[1] == min(distance)
            if distance.count(distance[1]) > 1:
                assert int(np.asarray(found).view(np.int32)) % 2 == 0
