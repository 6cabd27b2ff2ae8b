"""Chats of the native library's tokenizers, and templates tried out without a tokenizer of their own."""

from __future__ import annotations

import ctypes
import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny_tokenizers import byte_level

from l4export.runtimes.text import template_sandbox
from l4export.runtimes.text.chat_template import _message
from native_library import check, native_library
from native_tokenizer import SPECIAL_TOKENS_AS_TEXT, NativeTokenizer

_SIZE = ctypes.c_size_t


def render_chat(tokenizer: NativeTokenizer, messages: Any, **variables: Any) -> str:
    """As `TextCodec.render_chat`; raises `NativeError`."""
    return bytes(called("render_chat", tokenizer, {"messages": messages, **variables}, ctypes.c_char)).decode()


def encode_chat(
    tokenizer: NativeTokenizer, messages: Any, special_tokens_as_text: bool = False, **variables: Any
) -> Any:
    """As `TextCodec.encode_chat`; raises `NativeError`."""
    flags = ctypes.c_uint32(SPECIAL_TOKENS_AS_TEXT * special_tokens_as_text)
    return list(called("encode_chat", tokenizer, {"messages": messages, **variables}, ctypes.c_int32, flags))


def called(name: str, tokenizer: NativeTokenizer, chat: Any, kind: Any, *flags: Any) -> Any:
    document = chat if isinstance(chat, bytes) else json.dumps(chat).encode()
    count, room = _SIZE(), 1 << 14

    def call(buffer: Any, room: int) -> None:
        given = (tokenizer.handle, document, _SIZE(len(document)), *flags, buffer, _SIZE(room), ctypes.byref(count))
        check(getattr(native_library(), f"l4_tokenizer_{name}")(*given))

    buffer = (kind * room)()
    call(buffer, room)
    if count.value > room:
        buffer = (kind * count.value)()
        call(buffer, count.value)
    return buffer[: count.value]


def native_template(source: str | Mapping[str, str], **special_tokens: str) -> NativeTokenizer:
    """The tokenizer of `byte_level` with a chat template, or with several by name; as `tiny_tokenizers.templated`."""
    named = {"default": source} if isinstance(source, str) else source
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(_byte_level())
        config = {"chat_template": [{"name": name, "template": text} for name, text in named.items()], **special_tokens}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config))
        return NativeTokenizer(folder)


@functools.cache
def _byte_level() -> str:
    return byte_level().to_str()


def python_chat(source: str, messages: Sequence[Any], **variables: Any) -> str:
    """What Python's renderer writes, in this process; raises what goes wrong in the template."""
    request = {
        "template": source,
        "special_tokens": {},
        "messages": [_message(message) for message in messages],
        "variables": {"tools": None, "documents": None, "add_generation_prompt": True, **variables},
        "longest": 1 << 26,
    }
    return str(template_sandbox.answer(request, b""))


def outcome(render: Any, *given: Any, **options: Any) -> Any:
    """What is written, or None where it is refused."""
    try:
        return render(*given, **options)
    except Exception:  # a template in this process can raise anything
        return None
