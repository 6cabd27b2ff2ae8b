"""What a matrix is aimed at, against least squares; rounding by groups of rows, against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from l4export.calibration.layer import routing_feedback
from l4export.calibration.moments import Moments, relative_error
from l4export.checkpoint import open_checkpoint
from l4export.errors import InputError
from l4export.quantization import Scheme
from l4export.quantization.gptq import gptq, inverse_factor
from l4export.reference.streamed_model import StreamedReference
from workshop import Workshop


def pairs(tokens: int, k: int, away: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [tokens, K], and what they were before a linear part and a random part were added."""
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((tokens, k)) @ rng.standard_normal((k, k)) / np.sqrt(k)
    x = y + away * (y @ rng.standard_normal((k, k)) / np.sqrt(k) + rng.standard_normal((tokens, k)))
    return x.astype(np.float32), y.astype(np.float32)


def moments_of(x: np.ndarray, y: np.ndarray) -> Moments:
    return Moments([(torch.from_numpy(x)[None], torch.from_numpy(y)[None])])


def test_sums_over_pieces() -> None:
    x, y = pairs(9000, 12, 0.1)
    parts = [(torch.from_numpy(x[at]), torch.from_numpy(y[at])) for at in (slice(0, 5000), slice(5000, 9000))]
    moments = Moments(parts)
    wide, other = x.astype(np.float64), y.astype(np.float64)
    assert moments.tokens == 9000
    np.testing.assert_allclose(moments.inputs, 2 * wide.T @ wide, rtol=1e-4, atol=1e-2)  # float32 products of 4096 rows
    np.testing.assert_allclose(moments.shift, 2 * (other - wide).T @ wide, rtol=1e-4, atol=1e-2)


def test_the_aim_is_the_ridge_regression_that_the_docstring_gives() -> None:
    x, y = pairs(500, 16, 0.2)
    weight = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32)
    # least squares for the correction D: sum |D x - W (y - x)|^2 + r / 2 |D|^2, as one system
    ridge = 2 * (x.astype(np.float64) ** 2).sum() / 16 * 16 / 500 / 2
    rows = np.vstack([x, np.sqrt(ridge) * np.eye(16)]).astype(np.float64)
    wanted = np.vstack([(y - x) @ weight.T, np.zeros((16, 5))])
    correction = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    np.testing.assert_allclose(moments_of(x, y).aim(weight), weight + correction, atol=1e-5)


def test_the_aim_brings_outputs_nearer_on_inputs_not_seen() -> None:
    (x, y), weight = pairs(4000, 16, 0.2), np.eye(16, dtype=np.float32)
    aimed = moments_of(x[:2000], y[:2000]).aim(weight)
    before, after = (np.abs(x[2000:] @ w.T - y[2000:]).mean() for w in (weight, aimed))
    assert after < 0.9 * before


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_few_tokens_move_a_weight_by_little(tokens: int) -> None:
    """Random differences and fewer tokens than features: least squares without a ridge would believe them."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((tokens, 64)).astype(np.float32)
    y = x + 0.1 * rng.standard_normal((tokens, 64)).astype(np.float32)
    weight = np.eye(64, dtype=np.float32)
    fresh = rng.standard_normal((1000, 64)).astype(np.float32)
    aimed = moments_of(x, y).aim(weight)
    assert np.linalg.norm(fresh @ (aimed - weight).T) < 0.05 * np.linalg.norm(fresh)


def test_a_weight_whose_inputs_are_as_they_were_stays() -> None:
    x, _ = pairs(100, 16, 0.1)
    weight = np.ones((3, 16), np.float32)
    assert moments_of(x, x).aim(weight) is weight
    assert moments_of(np.zeros_like(x), np.ones_like(x)).aim(weight) is weight  # nothing to learn from


@pytest.mark.parametrize("bad", [1e30, np.inf, np.nan])
def test_moments_that_are_not_finite_are_refused(bad: float) -> None:
    """No damping would ever make them regular."""
    x, y = pairs(10, 16, 0.1)
    x[3, 2] = bad
    with pytest.raises(InputError, match="activations on the calibration text are not finite"):
        moments_of(x, y)


def test_relative_error() -> None:
    x, _ = pairs(200, 16, 0.1)
    rng = np.random.default_rng(2)
    weight, other = rng.standard_normal((2, 6, 16)).astype(np.float32)
    wide = x.astype(np.float64)
    expected = np.linalg.norm(wide @ (weight - other).T) / np.linalg.norm(wide @ weight.T)
    assert relative_error(weight, other, 2 * wide.T @ wide) == pytest.approx(expected, rel=1e-6)
    assert relative_error(np.zeros_like(weight), other, 2 * wide.T @ wide) == 0


class TestFeedback:
    """Rounding for outputs that cost more in some directions."""

    @staticmethod
    def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(5)
        inputs = rng.standard_normal((64, 300))
        read = rng.standard_normal((4, 128))
        cost = np.eye(128) + 3 * 128 * (read.T @ read) / np.trace(read.T @ read)
        return rng.standard_normal((128, 64)).astype(np.float32), 2 * inputs @ inputs.T, cost

    def test_it_costs_less_than_rounding_every_row_by_itself(self) -> None:
        weight, moments, cost = self.problem()
        factor = inverse_factor(cost, np.arange(128), 0.0)[0]

        def price(values: np.ndarray) -> float:
            away = weight.astype(np.float64) - values
            return float(np.einsum("ij,ik,kl,jl->", cost, away, moments, away, optimize=True))

        prices = [
            price(gptq(weight, moments, Scheme("int4", 32), feedback=feedback)[0].values) for feedback in (None, factor)
        ]
        assert prices[1] < 0.9 * prices[0]

    def test_groups_by_the_definition(self) -> None:
        """A group's errors, through the factor, are taken from the rows behind it."""
        weight, moments, cost = self.problem()
        factor = inverse_factor(cost, np.arange(128), 0.0)[0]
        left = weight.astype(np.float64)
        expected = np.zeros(weight.shape, np.float32)
        inverse = np.linalg.inv(cost)
        for start in range(0, 128, 32):
            mine, behind = slice(start, start + 32), slice(start + 32, 128)
            expected[mine] = gptq(left[mine].astype(np.float32), moments, Scheme("int4", 32))[0].values
            # the best for the others once these rows are fixed: (C^-1)_behind,mine (C^-1)_mine,mine^-1 missed
            rest = inverse[start:, start:]
            missed = left[mine] - expected[mine]
            left[behind] -= rest[32:, :32] @ np.linalg.solve(rest[:32, :32], missed)
            inverse[behind, behind] -= rest[32:, :32] @ np.linalg.solve(rest[:32, :32], rest[:32, 32:])
        values = gptq(weight, moments, Scheme("int4", 32), feedback=factor)[0].values
        assert (np.abs(values - expected) > 1e-4).mean() < 0.02  # float32 may send a near tie the other way

    def test_outputs_that_cost_the_same(self) -> None:
        weight, moments, _ = self.problem()
        plain = gptq(weight, moments, Scheme("int4", 32))[0]
        same = gptq(weight, moments, Scheme("int4", 32), feedback=np.eye(128, dtype=np.float32))[0]
        np.testing.assert_array_equal(plain.codes, same.codes)
        np.testing.assert_array_equal(plain.scales, same.scales)


def test_routing_feedback(workshop: Workshop) -> None:
    reference = StreamedReference(open_checkpoint(workshop.checkpoint("scout")))
    d, layers = reference.config.hidden_size, reference.config.num_hidden_layers
    factor = routing_feedback(reference, layers - 1)
    assert factor is not None
    read = reference.router_rows(layers - 1).astype(np.float64)
    read -= read.mean(axis=0)
    cost = np.eye(d) + 3 * d * (read.T @ read) / np.trace(read.T @ read)
    np.testing.assert_allclose(factor.T @ factor @ cost, np.eye(d), atol=1e-4)
    assert routing_feedback(reference, layers) is None
    assert routing_feedback(StreamedReference(open_checkpoint(workshop.checkpoint("guard"))), 0) is None
