"""Sampling of the native library, called as the Python runtime's functions are."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from l4export.runtimes.sampling.logprobs import TokenLogprobs
from l4export.runtimes.sampling.settings import Sampling
from native_library import check, native_library

PROCESSOR = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(c_int32), c_size_t, POINTER(c_float), c_size_t)


class L4Sampling(ctypes.Structure):
    """`l4_sampling`."""

    _fields_ = (
        ("size", c_size_t),
        ("temperature", c_double),
        ("top_p", c_double),
        ("min_p", c_double),
        ("repetition_penalty", c_double),
        ("top_k", c_int64),
        ("has_seed", c_int32),
        ("seed", c_uint64),
        ("stream", c_uint64),
        ("processor", PROCESSOR),
        ("user", c_void_p),
    )


class L4Logprob(ctypes.Structure):
    """`l4_logprob`."""

    _fields_ = (("token", c_int32), ("logprob", c_double))


def native_sampling(stream: int = 0, processor: Callable[..., int] | None = None, **settings: Any) -> L4Sampling:
    """Settings named as those of `Sampling`; those that are not given have the header's defaults."""
    given = {"top_p": 1.0, "repetition_penalty": 1.0, **settings}
    seed = given.pop("seed", None)
    sampling = L4Sampling(size=ctypes.sizeof(L4Sampling), stream=stream, **given)
    if seed is not None:
        sampling.has_seed, sampling.seed = 1, seed
    if processor is not None:
        sampling.processor = PROCESSOR(processor)
    return sampling


def settings_of(sampling: L4Sampling) -> Sampling:
    """The same for the Python runtime."""
    return Sampling(
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        sampling.repetition_penalty,
        sampling.seed if sampling.has_seed else None,
    )


def sample(logits: np.ndarray, sampling: L4Sampling, draw: int = 0, ids: Sequence[int] = ()) -> int:
    """`l4_sample`; raises `NativeError`."""
    scores, given, token = np.ascontiguousarray(logits, np.float32), np.asarray(ids, np.int32), c_int32()
    call = native_library().l4_sample
    call.argtypes = [c_void_p, c_size_t, POINTER(L4Sampling), c_uint64, c_void_p, c_size_t, POINTER(c_int32)]
    check(call(scores.ctypes.data, len(scores), sampling, draw, given.ctypes.data, len(given), token))
    return token.value


def logprobs(logits: np.ndarray, token: int, top: int) -> TokenLogprobs:
    """`l4_logprobs`; raises `NativeError`."""
    scores, own, likeliest = np.ascontiguousarray(logits, np.float32), c_double(), (L4Logprob * max(top, 0))()
    call = native_library().l4_logprobs
    call.argtypes = [c_void_p, c_size_t, c_int32, c_size_t, POINTER(c_double), POINTER(L4Logprob)]
    check(call(scores.ctypes.data, len(scores), token, top, own, likeliest))
    return TokenLogprobs(token, own.value, tuple((each.token, each.logprob) for each in likeliest))


def recommended(directory: Path) -> L4Sampling:
    """`l4_recommended_sampling`; raises `NativeError`."""
    found = L4Sampling(size=ctypes.sizeof(L4Sampling))
    check(native_library().l4_recommended_sampling(str(directory).encode(), ctypes.byref(found)))
    return found


def fresh_seed() -> int:
    """`l4_fresh_seed`."""
    seed = c_uint64()
    check(native_library().l4_fresh_seed(ctypes.byref(seed)))
    return seed.value
