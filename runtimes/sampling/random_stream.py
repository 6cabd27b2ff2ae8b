"""The random numbers of sampling: a function of seed, stream and number, which any language computes alike.

Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) encrypts a counter of four 32-bit
words c with a key of two words k. A round is

    c0, c1, c2, c3 = high(M1 * c2) ^ c1 ^ k0, low(M1 * c2), high(M0 * c0) ^ c3 ^ k1, low(M0 * c0)

with the halves of 64-bit products, M0 = 0xD2511F53 and M1 = 0xCD9E8D57. Before each of the rounds 2 to 10 the key grows
by (0x9E3779B9, 0xBB67AE85), modulo 2^32. Here, low word first,

    k = the seed, 64 bits;  c = the number of the draw, 64 bits, then the stream, 64 bits
    uniform = ((c1 << 32 | c0) >> 11) * 2^-53, of the result

which is one of the 2^53 multiples of 2^-53 in [0, 1). Nothing is kept from one number to the next, so a stream can be
continued anywhere: token i of an answer takes number i of its row's stream.
"""

from __future__ import annotations

import secrets

__all__ = ["fresh_seed", "philox", "uniform"]

_WORD = 0xFFFFFFFF
_FACTORS = 0xD2511F53, 0xCD9E8D57
_GROWTH = 0x9E3779B9, 0xBB67AE85


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 of a counter, in words of 32 bits."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        even, odd = _FACTORS[0] * c0, _FACTORS[1] * c2
        c0, c1, c2, c3 = (odd >> 32) ^ c1 ^ k0, odd & _WORD, (even >> 32) ^ c3 ^ k1, even & _WORD
        k0, k1 = (k0 + _GROWTH[0]) & _WORD, (k1 + _GROWTH[1]) & _WORD
    return c0, c1, c2, c3


def uniform(seed: int, stream: int, draw: int) -> float:
    """Number `draw` of a stream of a seed, in [0, 1); each of them is 0 to 2^64 - 1."""
    words = philox((draw & _WORD, draw >> 32, stream & _WORD, stream >> 32), (seed & _WORD, seed >> 32))
    return float((words[1] << 32 | words[0]) >> 11) * 2.0**-53


def fresh_seed() -> int:
    """A seed that nobody can foresee."""
    return secrets.randbits(64)
