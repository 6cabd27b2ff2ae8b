"""Tokenizers and chat templates that are changed at random, from a seed: each is used, or refused in one line."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tiny_tokenizers import HARD, byte_level
from tokenizers import Tokenizer

from l4export.errors import InputError
from l4export.runtimes.text import chat_template, tokenizer_file
from l4export.runtimes.text.chat_template import ChatTemplates
from l4export.runtimes.text.codec import TextCodec
from l4export.runtimes.text.helper_process import HelperFailed, HelperProcess
from l4export.runtimes.text.tokenizer_setup import load_tokenizer

SECONDS = 3.0
"""More than any of these may take, on a machine that is busy."""

NUMBERS = (0, -1, 1, 2**31, 2**32, 2**63, 2**64, 1e308, 0.5, -0.0)
TEXTS = ("", "a", "\x00", "☃" * 300, "(a|a)*[^a]", "[", "<|eot|>", "A" * 70_000, "ByteLevel", "BPE")
ODD = (None, True, [], {}, [[]], {"type": "x"}, *NUMBERS, *TEXTS)

PATTERNS = ({"String": ""}, {"String": "a"}, {"Regex": ""}, {"Regex": "\\s+|a*"}, {"Regex": "(a|aa)+$"}, {"Regex": "("})
NORMALIZERS: list[dict[str, Any]] = [
    *({"type": kind} for kind in ("NFD", "NFKD", "NFC", "NFKC", "Lowercase", "StripAccents", "Nmt", "ByteLevel")),
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    *({"type": "Replace", "pattern": pattern, "content": "aa"} for pattern in PATTERNS),
]
PRE_TOKENIZERS: list[dict[str, Any]] = [
    *({"type": kind} for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts")),
    *({"type": "FixedLength", "length": length} for length in (0, 1, 5, 2**63)),
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
    {"type": "CharDelimiterSplit", "delimiter": "a"},
    {"type": "Punctuation", "behavior": "Contiguous"},
    {"type": "Digits", "individual_digits": True},
    *({"type": "Split", "pattern": p, "behavior": "MergedWithNext", "invert": True} for p in PATTERNS),
]
DECODERS: list[dict[str, Any]] = [
    *({"type": kind} for kind in ("ByteLevel", "ByteFallback", "Fuse", "BPEDecoder")),
    *({"type": "Strip", "content": "a", "start": count, "stop": count} for count in (0, 1, 50, 2**63)),
    {"type": "WordPiece", "prefix": "", "cleanup": True},
    {"type": "CTC", "pad_token": "a", "word_delimiter_token": "", "cleanup": True},
    *({"type": "Replace", "pattern": pattern, "content": "bb"} for pattern in PATTERNS),
]
MODELS: list[dict[str, Any]] = [
    {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 2**31}, "unk_token": "[UNK]"},
    {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "max_input_chars_per_word": 0},
    {"type": "Unigram", "vocab": [["a", 0.0], ["☃", -1e300]], "unk_id": 5, "byte_fallback": True},
    {"type": "BPE", "vocab": {"a": 0, "aa": 1, "aaa": 1}, "merges": [["a", "a"], ["aa", "a"]], "byte_fallback": True},
    {"type": "BPE", "vocab": {"a": 7, "aa": 9}, "merges": ["a a"], "dropout": 2.0, "continuing_subword_prefix": "☃"},
]
PARTS = {"normalizer": NORMALIZERS, "pre_tokenizer": PRE_TOKENIZERS, "decoder": DECODERS, "model": MODELS}
LISTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value, of a vocabulary a few."""
    items = list(value.items())[:20] if isinstance(value, dict) else list(enumerate(value[:20]))
    for key, item in items:
        yield value, key
        if isinstance(item, (dict, list)):
            yield from places(item)


def changed_tokenizer(dice: random.Random) -> bytes:
    raw = copy.deepcopy(ORIGINAL)
    for _ in range(dice.choice([1, 1, 2, 4])):
        match dice.randrange(6):
            case 0 | 1:
                part = dice.choice(list(PARTS))
                raw[part] = dice.choice(PARTS[part])
            case 2:
                part = dice.choice(list(LISTS))
                raw[part] = {"type": "Sequence", LISTS[part]: dice.choices(PARTS[part], k=dice.choice([0, 2, 9, 80]))}
            case 3:
                container, key = dice.choice(list(places(raw)))
                del container[key]
            case _:
                container, key = dice.choice(list(places(raw)))
                container[key] = dice.choice([*ODD, copy.deepcopy(container)])
    text = json.dumps(raw)
    return (text if dice.random() < 0.95 else text[: dice.randrange(len(text))]).encode()


ORIGINAL = json.loads(byte_level().to_str())


def use(tokenizer: Tokenizer, dice: random.Random) -> None:
    """Only an InputError may come of it, and soon."""
    codec = TextCodec(tokenizer)
    for text in ("".join(dice.choices(HARD + "aaaabc<|eot|>", k=200)), "", "the fox <|eot|>"):
        for as_text in (False, True):
            try:
                ids = codec.encode(text, special_tokens_as_text=as_text)
                codec.decode(ids)
                stream = codec.stream()
                for token in ids[:50]:
                    stream.push(token)
                stream.flush()
            except InputError as error:
                assert "\n" not in str(error)


def fuzz_tokenizers(seed: int, count: int) -> tuple[int, int]:
    """Change and use so many; how many were used and refused."""
    dice, used, refused = random.Random(seed), 0, 0
    helper = HelperProcess("tokenizer", tokenizer_file.MEMORY_BYTES, 1 << 20)
    for number in range(count):
        data, began = changed_tokenizer(dice), time.monotonic()
        try:
            helper.ask({"added": [], "survey": dice.random() < 0.5}, SECONDS, data)
        except HelperFailed as error:
            assert "\n" not in str(error) and len(str(error)) < 500, number
            refused += 1
            continue
        used += 1
        use(load_tokenizer(data, []), dice)
        assert time.monotonic() - began < 2 * SECONDS, number
    return used, refused


PIECES = (
    "{% for m in messages %}",
    "{% endfor %}",
    "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}",
    "{{ bos_token }}",
    "{{ m.content }}",
    "{{ messages | tojson(indent=10 ** 9) }}",
    "{% if m.role == 'user' %}",
    "{% endif %}",
    "{% set x = messages * 99 %}",
    "{% set x = x ~ x %}",
    "{{ x | map('string') | join(x) }}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% macro f(a) %}",
    "{% endmacro %}",
    "{{ f(f) }}",
    "{{ [1] | slice(10 ** 8) | list }}",
    "{{ range(99999) | batch(7) | list | length }}",
    "{{ namespace(a=messages).a }}",
    "{% include 'x' %}",
    "{{ ''.__class__ }}",
    "{{ lipsum(n=1000) }}",
    "{{ cycler(1, 2).next() }}",
    "{{ x.y.z }}",
    "{%- raw %}{{",
    "{#",
    "\ud800",
    "text",
)


def fuzz_templates(seed: int, count: int) -> tuple[int, int]:
    """Render so many programs that are put together at random; how many were rendered and refused."""
    dice, rendered, refused = random.Random(seed), 0, 0
    templates = ChatTemplates({}, {"bos_token": "<s>"})
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]
    for number in range(count):
        source, began = "".join(dice.choices(PIECES, k=dice.randrange(1, 6))), time.monotonic()
        try:
            templates.render(source, messages, {"tools": None})
            rendered += 1
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 500, number
            refused += 1
        assert time.monotonic() - began < 2 * SECONDS, number
    return rendered, refused


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.5)


def test_changed_tokenizers() -> None:
    used, refused = fuzz_tokenizers(1, 250)
    assert used > 30 and refused > 30


def test_changed_templates() -> None:
    rendered, refused = fuzz_templates(1, 100)
    assert rendered > 5 and refused > 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_many_changed_tokenizers_and_templates(seed: int) -> None:
    fuzz_tokenizers(seed, 5000)
    fuzz_templates(seed, 2000)
