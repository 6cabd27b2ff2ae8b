"""Generation of the native library, called as `Engine.generate_batch` is."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import dataclass, field
from typing import Any

from native_library import check
from native_sampling import L4Logprob, L4Sampling
from native_session import NativeSession, array, library
from native_tokenizer import NativeTokenizer


class L4Prompt(ctypes.Structure):
    """`l4_prompt`."""

    _fields_ = (
        ("size", c_size_t),
        ("ids", POINTER(c_int32)),
        ("count", c_size_t),
        ("images", c_void_p),
        ("sampling", POINTER(L4Sampling)),
    )


class L4Token(ctypes.Structure):
    """`l4_token`."""

    _fields_ = (
        ("size", c_size_t),
        ("row", c_int32),
        ("id", c_int32),
        ("text", c_void_p),
        ("text_bytes", c_size_t),
        ("finish_reason", c_char_p),
        ("logprob", c_double),
        ("top", POINTER(L4Logprob)),
        ("top_count", c_size_t),
    )


class L4GenerateOptions(ctypes.Structure):
    """`l4_generate_options`."""

    _fields_ = (
        ("size", c_size_t),
        ("max_new_tokens", c_int64),
        ("stop_token_ids", POINTER(c_int32)),
        ("stop_token_count", c_size_t),
        ("tokenizer", c_void_p),
        ("stop_strings", POINTER(c_char_p)),
        ("stop_string_count", c_size_t),
        ("logprobs", c_int64),
    )


ON_TOKEN = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(L4Token))


@dataclass
class Row:
    """What has been generated of a row."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    logprobs: list[tuple[float, list[tuple[int, float]]]] = field(default_factory=list)

    def take(self, token: L4Token) -> None:
        self.tokens.append(token.id)
        self.text += ctypes.string_at(token.text, token.text_bytes).decode()
        assert self.finish_reason is None, "a row that has ended goes on"
        self.finish_reason = token.finish_reason.decode() if token.finish_reason else None
        top = [(token.top[i].token, token.top[i].logprob) for i in range(token.top_count)]
        self.logprobs.append((token.logprob, top))


class NativeGeneration:
    """`l4_generation`, or the arguments of `l4_session_generate`; `rows` is what has been said."""

    def __init__(
        self,
        session: NativeSession,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int = 64,
        sampling: Sequence[L4Sampling | None] | None = None,
        stop_token_ids: Sequence[int] | None = None,
        stop_strings: Sequence[str] = (),
        tokenizer: NativeTokenizer | None = None,
        logprobs: int = -1,
    ) -> None:
        self.rows = [Row() for _ in prompts]
        self.session = session
        each = sampling or [None] * len(prompts)
        size = ctypes.sizeof(L4Prompt)
        parts = [
            L4Prompt(size, array(c_int32, ids), len(ids), None, ctypes.pointer(settings) if settings else None)
            for ids, settings in zip(prompts, each, strict=True)
        ]
        stops = None if stop_token_ids is None else (c_int32 * (len(stop_token_ids) + 1))(*stop_token_ids)
        options = L4GenerateOptions(
            ctypes.sizeof(L4GenerateOptions),
            max_new_tokens,
            stops,
            len(stop_token_ids or ()),
            tokenizer.handle if tokenizer else None,
            (c_char_p * len(stop_strings))(*(stop.encode() for stop in stop_strings)),
            len(stop_strings),
            logprobs,
        )
        self._kept = (each, parts)
        self._arguments: tuple[Any, ...] = (
            session.handle,
            (L4Prompt * len(parts))(*parts),
            c_size_t(len(parts)),
            byref(options),
        )
        self.handle: c_void_p | None = None

    def start(self) -> NativeGeneration:
        """`l4_generation_start`."""
        self.handle = c_void_p()
        check(library().l4_generation_start(*self._arguments, byref(self.handle)))
        return self

    def step(self) -> list[int | None]:
        """`l4_generation_next`: a token for each row, None for a row that has ended; nothing at the end."""
        tokens, count = POINTER(L4Token)(), c_size_t()
        check(library().l4_generation_next(self.handle, byref(tokens), byref(count)))
        chosen: list[int | None] = [None] * len(self.rows)
        for token in tokens[: count.value] if count.value else []:
            chosen[token.row] = token.id
            self.rows[token.row].take(token)
        return chosen if count.value else []

    def steps(self) -> Iterator[list[int | None]]:
        while step := self.step():
            yield step

    def stop(self, row: int) -> None:
        check(library().l4_generation_stop(self.handle, row))

    def close(self) -> None:
        library().l4_generation_close(self.handle)
        self.handle = None

    def run(self, on_token: Callable[[L4Token], int] = lambda token: 0) -> NativeGeneration:
        """`l4_session_generate`; `on_token` sees a token after its row has taken it."""

        def take(user: Any, token: Any) -> int:
            self.rows[token[0].row].take(token[0])
            return on_token(token[0])

        callback = ON_TOKEN(take)
        check(library().l4_session_generate(*self._arguments, callback, None))
        return self
