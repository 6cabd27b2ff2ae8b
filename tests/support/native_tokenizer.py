"""The native library's tokenizers and text streams, with the interface that `TextCodec` has."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from native_library import check, native_library

ADD_SPECIAL_TOKENS, SPECIAL_TOKENS_AS_TEXT = 1, 2
_SIZE = ctypes.c_size_t


class NativeTokenizer:
    """An opened tokenizer; raises `NativeError` where it is refused."""

    def __init__(self, directory: str | Path) -> None:
        self.handle = ctypes.c_void_p()
        check(native_library().l4_tokenizer_open(str(directory).encode(), ctypes.byref(self.handle)))

    def __del__(self) -> None:
        native_library().l4_tokenizer_close(self.handle)

    def encode(
        self, text: str | bytes, add_special_tokens: bool = True, special_tokens_as_text: bool = False
    ) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        flags = ADD_SPECIAL_TOKENS * add_special_tokens | SPECIAL_TOKENS_AS_TEXT * special_tokens_as_text
        count = _SIZE()
        ids = (ctypes.c_int32 * (len(data) + 64))()

        def call(room: int) -> None:
            given = (self.handle, data, _SIZE(len(data)), ctypes.c_uint32(flags), ids, _SIZE(room), ctypes.byref(count))
            check(native_library().l4_tokenizer_encode(*given))

        call(len(ids))
        if count.value > len(ids):  # a post-processor that adds many tokens
            ids = (ctypes.c_int32 * count.value)()
            call(len(ids))
        return ids[: count.value]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        given = (ctypes.c_int32 * len(ids))(*ids)
        count = _SIZE()
        skip = int(skip_special_tokens)

        def call(text: Any, room: int) -> None:
            arguments = (self.handle, given, _SIZE(len(ids)), skip, text, _SIZE(room), ctypes.byref(count))
            check(native_library().l4_tokenizer_decode(*arguments))

        call(None, 0)
        text = ctypes.create_string_buffer(count.value)
        call(text, count.value)
        return text.raw[: count.value].decode()

    def token_id(self, token: str) -> int:
        found = ctypes.c_int32()
        check(native_library().l4_tokenizer_token_id(self.handle, token.encode(), ctypes.byref(found)))
        return found.value

    def stream(self, stop_strings: Sequence[str] = ()) -> NativeStream:
        return NativeStream(self, stop_strings)


class NativeStream:
    """A text stream; `stopped` is the index of the stop string that has ended the text, or -1."""

    def __init__(self, tokenizer: NativeTokenizer, stop_strings: Sequence[str]) -> None:
        self.handle = ctypes.c_void_p()
        self.stopped = -1
        stops = (ctypes.c_char_p * len(stop_strings))(*(stop.encode() for stop in stop_strings))
        created = native_library().l4_text_stream_create(
            tokenizer.handle, stops, _SIZE(len(stops)), ctypes.byref(self.handle)
        )
        check(created)

    def __del__(self) -> None:
        native_library().l4_text_stream_close(self.handle)

    def push(self, token: int) -> str:
        return self._call(native_library().l4_text_stream_push, ctypes.c_int32(token))

    def flush(self) -> str:
        return self._call(native_library().l4_text_stream_flush)

    def _call(self, call: Any, *arguments: Any) -> str:
        text, count, stopped = ctypes.c_void_p(), _SIZE(), ctypes.c_int32()
        check(call(self.handle, *arguments, ctypes.byref(text), ctypes.byref(count), ctypes.byref(stopped)))
        self.stopped = stopped.value
        return ctypes.string_at(text, count.value).decode()
