"""The random numbers of sampling: the published answers of Philox, and numbers that other runtimes must give."""

from __future__ import annotations

import numpy as np
import pytest

from l4export.runtimes.sampling.random_stream import fresh_seed, philox, uniform

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
ONES = (0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (*ONES, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (*PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_known_answers(counter: tuple[int, int, int, int], key: tuple[int, int], answer: tuple[int, ...]) -> None:
    """Of the authors' library, Random123: `philox4x32 10` of its kat_vectors."""
    assert philox(counter, key) == answer


def test_the_number_is_made_of_the_first_two_words() -> None:
    assert uniform(0, 0, 0) == (0xE169C58D6627E8D5 >> 11) / 2**53
    seed, stream, draw = 0x299F31D0A4093822, 0x0370734413198A2E, 0x85A308D3243F6A88
    assert uniform(seed, stream, draw) == (0x94FDCCEBD16CFE09 >> 11) / 2**53
    most = 2**64 - 1
    assert uniform(most, most, most) == (0x41C83B0E408F276D >> 11) / 2**53


def test_numbers_are_uniform_and_streams_apart() -> None:
    """Means and correlations within 5 standard deviations, which a right stream misses once in 1.7 million times."""
    count = 4000
    streams = np.array(
        [[uniform(seed, stream, draw) for draw in range(count)] for seed, stream in ((1, 0), (1, 1), (2, 0))]
    )
    assert (streams >= 0).all() and (streams < 1).all()
    assert (np.abs(streams.mean(axis=1) - 0.5) < 5 * (1 / 12 / count) ** 0.5).all()
    assert (np.abs(np.corrcoef(streams)[np.triu_indices(3, 1)]) < 5 / count**0.5).all()
    assert abs(np.corrcoef(streams[0, 1:], streams[0, :-1])[0, 1]) < 5 / count**0.5
    assert np.histogram(streams[0], 10, (0, 1))[0].min() > count / 10 - 5 * (count * 0.09) ** 0.5


def test_fresh_seeds_differ() -> None:
    assert len({fresh_seed() for _ in range(100)}) == 100
