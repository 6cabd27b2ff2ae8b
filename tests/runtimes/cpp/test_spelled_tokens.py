"""Special tokens that a chat's messages spell out stay text in the native library as they do in the Python runtime."""

from __future__ import annotations

import ctypes
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import SPECIAL, change_tokenizer, opened, write_tokenizer

from native_library import NativeError, check, native_library
from native_tokenizer import SPECIAL_TOKENS_AS_TEXT, NativeTokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|header_start|>{{ message.role }}<|header_end|>\n\n"
    "{{ message.content | trim }}<|eot|>{% endfor %}fox{{ tools }}"
)
MARKS = ["\U000f0000", "\U000f0001"]


def encode_chat(native: NativeTokenizer, chat: dict[str, Any], flags: int = SPECIAL_TOKENS_AS_TEXT) -> list[int]:
    data = json.dumps(chat).encode()
    count = ctypes.c_size_t()
    ids = (ctypes.c_int32 * 4096)()
    given = (native.handle, data, ctypes.c_size_t(len(data)), ctypes.c_uint32(flags), ids, ctypes.c_size_t(len(ids)))
    check(native_library().l4_tokenizer_encode_chat(*given, ctypes.byref(count)))
    return ids[: count.value]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"chat_control_tokens": ["quick"]},
        {"added_tokens_decoder": {"1": {"content": "fox"}, "2": {"content": "dog"}}},
    ],
)
def test_chats(config: dict[str, Any], tmp_path: Path) -> None:
    """Tokens alone, within words, doubled, nested in each other, beside marks and line ends; in tools too."""
    write_tokenizer(tmp_path, chat_template=TEMPLATE, **config)
    codec, native = opened(tmp_path), NativeTokenizer(tmp_path)
    pieces = ["the", " quick", "fox", "dog", "\n", "\n\n", " ", "<|", "|>", *SPECIAL, *MARKS, "<|eot<|eot|>|>", "é"]
    rng = random.Random(0)

    def text() -> str:
        return "".join(rng.choice(pieces) for _ in range(rng.randint(0, 8)))

    for _ in range(40):
        messages = [{"role": rng.choice(["user", "<|eot|>"]), "content": text()} for _ in range(rng.randint(1, 3))]
        tools = [{"name": text()}] if rng.random() < 0.3 else None
        chat = {"messages": messages, "tools": tools, "add_generation_prompt": False}
        for as_text in (True, False):
            expected = codec.encode_chat(messages, False, special_tokens_as_text=as_text, tools=tools)
            assert encode_chat(native, chat, SPECIAL_TOKENS_AS_TEXT * as_text) == expected, messages


def test_a_special_token_of_letters(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template="{{ messages[0].content }}")
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    change_tokenizer(tmp_path, model=model | {"ignore_merges": True}, pre_tokenizer=split)
    codec, native = opened(tmp_path), NativeTokenizer(tmp_path)
    messages = [{"role": "user", "content": "<|eot|>"}]
    # within a text, behind a line end, the word is another one
    assert encode_chat(native, {"messages": messages}) == codec.encode_chat(messages, special_tokens_as_text=True)
    with pytest.raises(NativeError, match="of ordinary text"):
        native.encode("<|eot|>", special_tokens_as_text=True)
