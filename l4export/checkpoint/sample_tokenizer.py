"""The tokenizer of sample checkpoints that see images: every byte of UTF-8, and Llama 4's special tokens.

It has no merges, so a text is its bytes. Llama 4's special tokens have the distances from each other that they have as
released, where the ids of begin of text, padding and images are those of config.json. All other ids of the vocabulary
are words that no text is encoded to, so that whatever a model says can be read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = [
    "CHAT_TEMPLATE",
    "added_token",
    "begins_with",
    "byte_letters",
    "special_ids",
    "tokenizer_settings",
    "write_tokenizer",
]

_AFTER_BEGIN = {"begin_of_text": 0, "end_of_text": 1, "header_start": 5, "header_end": 6, "eom": 7, "eot": 8}
_BEFORE_PATCH = {"tile_x_separator": 8, "tile_y_separator": 7, "image": 2, "patch": 0}
"""Llama 4's begin of text has the id 200000 and its patch token, which takes features, 200092."""

_BYTES = bytes(byte for byte in range(0xF5) if byte not in (0xC0, 0xC1))
"""Those that UTF-8 has [RFC 3629, section 1]: 243, which leaves the smallest sample's 13 special tokens their room."""

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|header_start|>' + message.role + '<|header_end|>\\n\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {{- '<|image|>' if part.type == 'image' else part.text if part.type == 'text' }}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header_start|>assistant<|header_end|>\\n\\n' }}
{%- endif %}
"""
"""Turns as Llama 4 writes them, with the parts of a content in their order and a placeholder for each image."""


def special_ids(config: dict[str, Any]) -> dict[str, int]:
    """The id of every special token, for a multimodal config.json."""
    text, patch = config["text_config"], config["image_token_index"]
    ids = {name: text["bos_token_id"] + distance for name, distance in _AFTER_BEGIN.items()}
    ids |= {name: patch - distance for name, distance in _BEFORE_PATCH.items()}
    ids |= {"image_start": config["boi_token_index"], "image_end": config["eoi_token_index"]}
    ids["finetune_right_pad"] = text["pad_token_id"]
    return {f"<|{name}|>": number for name, number in ids.items()}


def write_tokenizer(path: Path, config: dict[str, Any]) -> None:
    """Write the tokenizer's files and a chat template for a multimodal config.json into the directory `path`."""
    special = special_ids(config)
    begin, end, pad = (f"<|{name}|>" for name in ("begin_of_text", "eot", "finetune_right_pad"))
    bytes_as_text = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(name, number) for name, number in sorted(special.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": bytes_as_text,
        "post_processor": begins_with(begin, special[begin]),
        "decoder": bytes_as_text,
        "model": {"type": "BPE", "vocab": _vocabulary(config["text_config"]["vocab_size"], special), "merges": []},
    }
    settings = tokenizer_settings(begin, end, pad)
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)):
        (path / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _vocabulary(size: int, special: dict[str, int]) -> dict[str, int]:
    """A token for every id: bytes have the lowest that are not special, words follow."""
    letters, taken = byte_letters(), set(special.values())
    free = [number for number in range(size) if number not in taken]
    tokens = {letters[byte]: number for byte, number in zip(_BYTES, free, strict=False)}
    return tokens | special | {letters[0x20] + _word(number): number for number in free[len(_BYTES) :]}


def byte_letters() -> list[str]:
    """The characters that stand for the 256 bytes in a byte-level tokenizer: those that can be printed for themselves.

    It is the table of GPT-2: the n-th byte that cannot be printed is the character 256 + n.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return [chr(byte if byte in printed else 256 + others.index(byte)) for byte in range(256)]


def _word(number: int) -> str:
    """A number written in the letters a to z."""
    word = ""
    while number:
        number, digit = divmod(number, 26)
        word = chr(ord("a") + digit) + word
    return word


def added_token(content: str, number: int) -> dict[str, Any]:
    """A special token, as tokenizer.json lists it."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": True}


def tokenizer_settings(begin: str, end: str, pad: str) -> dict[str, Any]:
    """A tokenizer_config.json with these special tokens, for transformers 4 and 5."""
    return {
        "bos_token": begin,
        "eos_token": end,
        "pad_token": pad,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def begins_with(token: str, number: int) -> dict[str, Any]:
    """What puts a token before every text."""
    first, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    pair = [first, text, {"Sequence": {"id": "B", "type_id": 0}}]
    known = {token: {"id": token, "ids": [number], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": [first, text], "pair": pair, "special_tokens": known}
