"""Intervals that hold what they promise, for tokens that depend on their neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from l4export.reports.confidence import BlockBootstrap


def correlated(rng: np.random.Generator, count: int) -> np.ndarray:
    """A stationary series of mean 3 in which neighbours correlate by 0.9."""
    noise = rng.normal(size=count)
    series = np.empty(count)
    series[0] = noise[0] / np.sqrt(1 - 0.9**2)
    for at in range(1, count):
        series[at] = 0.9 * series[at - 1] + noise[at]
    return 3 + series


def test_95_of_100_intervals_hold_the_mean_of_a_correlated_series() -> None:
    rng = np.random.default_rng(0)
    held, naive = 0, 0
    for _ in range(200):
        series = correlated(rng, 4000)
        interval = BlockBootstrap(4000).mean(series)
        held += interval.low <= 3 <= interval.high
        naive += abs(series.mean() - 3) <= 1.96 * series.std() / np.sqrt(4000)
    assert held >= 178  # 95 % of 200 less three standard deviations (3.1 each), and 3 for bootstraps' known optimism
    assert naive < 120  # as if tokens were independent: what the blocks are for


def test_the_figure_is_that_of_all_tokens_and_paired_figures_are_sharp() -> None:
    rng = np.random.default_rng(1)
    loss = 3 + rng.normal(size=1001)
    other = loss + 0.1 + 0.001 * rng.normal(size=1001)
    bootstrap = BlockBootstrap(1001)
    assert bootstrap.mean(loss, np.exp).value == pytest.approx(np.exp(loss.mean()))
    ratio = bootstrap.mean(other - loss, np.exp)
    assert ratio.low < np.exp(0.1) < ratio.high and ratio.high - ratio.low < 1e-3
    assert bootstrap.mean(loss) == BlockBootstrap(1001).mean(loss)  # the same again


def test_a_constant_has_no_width() -> None:
    interval = BlockBootstrap(130).mean(np.full(130, 2.5))
    assert interval.low == pytest.approx(2.5) and interval.high == pytest.approx(2.5)
