"""Mixtures of experts of libl4cpu: the bits of the NumPy definition, which is Llama 4's formula."""

from __future__ import annotations

import cpu_kernel_definition as definition
import numpy as np
import pytest
from cpu_kernel_definition import Unit
from cpu_kernel_library import MoeTiles, assert_same_bits, moe, random_matrix

F32 = np.float32
HIDDEN, WIDTH, EXPERTS = 96, 64, 5

activations = pytest.mark.parametrize("int8", [True, False], ids=["int8", "float"])


def random_unit(rng: np.random.Generator, bits: int = 4, block: int = 32, zero_points: bool = False) -> Unit:
    gate_up = random_matrix(rng, 2 * WIDTH, HIDDEN, bits, block, zero_points)
    return Unit(gate_up, random_matrix(rng, HIDDEN, WIDTH, bits, block, zero_points))


def tokens(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """x and router logits."""
    return rng.standard_normal((count, HIDDEN)).astype(F32), rng.standard_normal((count, EXPERTS)).astype(F32)


@activations
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_bits_of_the_definition(isa: str, k: int, shared: bool, int8: bool) -> None:
    rng = np.random.default_rng(k)
    experts, beside = [random_unit(rng) for _ in range(EXPERTS)], random_unit(rng) if shared else None
    x, logits = tokens(rng, 40)
    tiles, expected = MoeTiles(experts, beside, False), definition.moe(x, logits, k, experts, beside, int8)
    for count in (1, 2, 7, 40):
        assert_same_bits(moe(isa, tiles, k, x[:count], logits[:count], int8), expected[:count])


def test_each_matrix_has_its_own_coding(isa: str) -> None:
    rng = np.random.default_rng(0)
    experts = [
        Unit(random_matrix(rng, 2 * WIDTH, HIDDEN, 4, 32, True), random_matrix(rng, HIDDEN, WIDTH, 8, 64, True))
        for _ in range(EXPERTS)
    ]
    shared = Unit(random_matrix(rng, 2 * WIDTH, HIDDEN, 8, 16, True), random_matrix(rng, HIDDEN, WIDTH, 4, 16, True))
    x, logits = tokens(rng, 20)
    y = moe(isa, MoeTiles(experts, shared, True), 1, x, logits, True)
    assert_same_bits(y, definition.moe(x, logits, 1, experts, shared, True))


def test_which_experts_are_chosen(isa: str) -> None:
    """Of equal logits the first; infinite ones count; a NaN spoils its row and no other."""
    rng = np.random.default_rng(1)
    experts, (x, logits) = [random_unit(rng) for _ in range(EXPERTS)], tokens(rng, 6)
    logits[0] = 0.5
    logits[1] = [-1, 2, 2, 2, -1]
    logits[2] = [-np.inf, 3, np.inf, 0, 0]
    logits[3] = -np.inf
    logits[4, 3] = np.nan
    y = moe(isa, MoeTiles(experts, None, False), 2, x, logits, False)
    assert_same_bits(y, definition.moe(x, logits, 2, experts, None, False))
    assert np.isnan(y[4]).all() and np.isfinite(y[[0, 1, 2, 3, 5]]).all()


def test_the_definition_is_the_formula_of_llama_4() -> None:
    """In float64 with the weights as numbers: y = shared(x) + sum of expert(sigmoid(z) x), silu(gate) * up between."""
    rng = np.random.default_rng(2)
    experts, shared, (x, logits) = [random_unit(rng) for _ in range(EXPERTS)], random_unit(rng), tokens(rng, 8)

    def unit(u: Unit, x: np.ndarray) -> np.ndarray:
        gate_up, down = (
            (m.less_zero() * m.scales.astype(np.float64)[..., None]).reshape(m.codes.shape) for m in (u.gate_up, u.down)
        )
        gate, up = np.split(x @ gate_up.T, 2, axis=-1)
        return gate / (1 + np.exp(-gate)) * up @ down.T

    expected = unit(shared, x.astype(np.float64))
    for t, row in enumerate(logits.astype(np.float64)):
        for e in np.argsort(-row)[:2]:
            expected[t] += unit(experts[e], x[t].astype(np.float64) / (1 + np.exp(-row[e])))
    found = definition.moe(x, logits, 2, experts, shared, False)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
