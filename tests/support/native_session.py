"""Engines and sessions of the native library, called through its C ABI as the tests need them."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from native_library import ONNXRUNTIME, check, native_library


class EngineOptions(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("onnxruntime", c_char_p),
        ("provider", c_char_p),
        ("threads", c_int32),
        ("verify", c_int32),
    )


class EngineInfo(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("vocab_size", c_int32),
        ("max_context", c_int64),
        ("prefill_cut", c_int64),
        ("kv_layout", c_char_p),
        ("provider", c_char_p),
        ("onnxruntime", c_char_p),
        ("eos_token_ids", POINTER(c_int32)),
        ("eos_token_count", c_size_t),
        ("sees_images", c_int32),
        ("threads", c_int32),
    )


class SessionOptions(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("rows", c_int32), ("capacity", c_int64), ("starts", POINTER(c_int64)))


class SessionInfo(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("rows", c_int32), ("capacity", c_int64), ("kv_bytes", c_uint64))


class RowInfo(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("length", c_int64), ("start", c_int64), ("position", c_int64))


class RowTokens(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t),
        ("row", c_int32),
        ("ids", POINTER(c_int32)),
        ("count", c_size_t),
        ("images", c_void_p),
    )


@functools.cache
def library() -> ctypes.CDLL:
    native = native_library()
    native.l4_engine_close.argtypes = native.l4_session_close.argtypes = native.l4_session_cancel.argtypes = [c_void_p]
    native.l4_engine_manifest.argtypes = [c_void_p]
    native.l4_engine_manifest.restype = c_char_p
    return native


def array(kind: Any, values: Sequence[int] | np.ndarray) -> Any:
    """A C array of numbers."""
    return (kind * len(values))(*map(int, values))


class NativeEngine:
    """An engine; `options` as `l4_engine_options` has them."""

    def __init__(self, path: str | Path, threads: int = 1, **options: Any) -> None:
        self.handle = c_void_p()
        given = {"onnxruntime": str(ONNXRUNTIME), "threads": threads, **options}
        encoded = {name: value.encode() if isinstance(value, str) else value for name, value in given.items()}
        told = EngineOptions(ctypes.sizeof(EngineOptions), **encoded)
        check(library().l4_engine_open(str(path).encode(), byref(told), byref(self.handle)))

    def __del__(self) -> None:
        library().l4_engine_close(self.handle)

    @property
    def info(self) -> EngineInfo:
        info = EngineInfo(ctypes.sizeof(EngineInfo))
        check(library().l4_engine_get_info(self.handle, byref(info)))
        return info

    @property
    def manifest(self) -> str:
        text: bytes = library().l4_engine_manifest(self.handle)
        return text.decode()

    def forget_images(self) -> None:
        check(library().l4_engine_forget_images(self.handle))

    def session(self, rows: int = 1, capacity: int = 0, starts: Sequence[int] | None = None) -> NativeSession:
        each = None if starts is None else array(c_int64, starts)
        options = SessionOptions(ctypes.sizeof(SessionOptions), rows, capacity, each)
        handle = c_void_p()
        check(library().l4_session_create(self.handle, byref(options), byref(handle)))
        return NativeSession(handle, self.info.vocab_size)

    def load_session(self, path: str | Path) -> NativeSession:
        handle = c_void_p()
        check(library().l4_session_load(self.handle, str(path).encode(), byref(handle)))
        return NativeSession(handle, self.info.vocab_size)


class NativeSession:
    """A session; what `append` and `step` give is a copy."""

    def __init__(self, handle: c_void_p, vocab: int) -> None:
        self.handle, self.vocab = handle, vocab

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        library().l4_session_close(self.handle)
        self.handle = c_void_p()

    @property
    def info(self) -> SessionInfo:
        info = SessionInfo(ctypes.sizeof(SessionInfo))
        check(library().l4_session_get_info(self.handle, byref(info)))
        return info

    def row(self, row: int) -> RowInfo:
        info = RowInfo(ctypes.sizeof(RowInfo))
        check(library().l4_session_row(self.handle, row, byref(info)))
        return info

    @property
    def lengths(self) -> list[int]:
        return [self.row(row).length for row in range(self.info.rows)]

    def token_ids(self, row: int = 0) -> list[int]:
        count = c_size_t()
        check(library().l4_session_token_ids(self.handle, row, None, 0, byref(count)))
        ids = (c_int32 * count.value)()
        check(library().l4_session_token_ids(self.handle, row, ids, len(ids), byref(count)))
        return list(ids)

    def append(
        self, rows: Sequence[Sequence[int]], last_only: bool = False, images: Sequence[c_void_p | None] | None = None
    ) -> np.ndarray:
        """float32 [rows of the session, positions, vocab]; `rows` are the first ones."""
        shown = images or [None] * len(rows)
        size = ctypes.sizeof(RowTokens)
        parts = [
            RowTokens(size, row, array(c_int32, ids), len(ids), seen)
            for row, (ids, seen) in enumerate(zip(rows, shown, strict=True))
        ]
        logits, positions = POINTER(c_float)(), c_size_t()
        tokens = (RowTokens * len(parts))(*parts)
        check(
            library().l4_session_append(
                self.handle, tokens, c_size_t(len(parts)), c_int(last_only), byref(logits), byref(positions)
            )
        )
        shape = (self.info.rows, positions.value, self.vocab)
        return np.ctypeslib.as_array(logits, shape).copy()

    def rewind(self, tokens: Sequence[int]) -> None:
        check(library().l4_session_rewind(self.handle, array(c_int64, tokens)))

    def rewind_row(self, row: int, tokens: int) -> None:
        check(library().l4_session_rewind_row(self.handle, row, c_int64(tokens)))

    def reset(self) -> None:
        check(library().l4_session_reset(self.handle))

    def fork(self, rows: Sequence[int] | None = None) -> NativeSession:
        handle, chosen = c_void_p(), None if rows is None else array(c_int32, rows)
        check(library().l4_session_fork(self.handle, chosen, c_size_t(len(rows or ())), byref(handle)))
        return NativeSession(handle, self.vocab)

    def copy_row(self, row: int, source: NativeSession, source_row: int) -> None:
        check(library().l4_session_copy_row(self.handle, row, source.handle, source_row))

    def save(self, path: str | Path) -> None:
        check(library().l4_session_save(self.handle, str(path).encode()))

    def cancel(self) -> None:
        library().l4_session_cancel(self.handle)
