"""Tokenizers of strangers: refused in one line, within limits of time and memory, before they are loaded."""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import change_tokenizer, opened, write_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from l4export.errors import EnvironmentLacks, InputError, StorageError
from l4export.runtimes.text import tokenizer_file
from l4export.runtimes.text.codec import TextCodec


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "not a tokenizer: "),
        ("tokenizer.json", b"[" * 100_000, "not a tokenizer: "),
        ("tokenizer.json", b"\xff\xfe", "not a tokenizer: "),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}', "not a tokenizer: "),
        ("tokenizer_config.json", b"{", "not JSON: "),
        ("tokenizer_config.json", b"[" * 100_000, "not JSON: "),
        ("tokenizer_config.json", b"[]", "a JSON list, not an object"),
        ("tokenizer_config.json", b"\xff", "byte 0 is not UTF-8"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "neither text nor a list"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "x", "template": 3}]}', "neither text nor a list"),
        ("chat_template.jinja", b"ok \xff", "byte 3 is not UTF-8"),
    ],
)
def test_broken_files_are_refused_by_name(directory: Path, name: str, content: bytes, message: str) -> None:
    (directory / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        TextCodec.open(directory)
    assert name in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "size"),
    [("tokenizer.json", 129 << 20), ("tokenizer_config.json", 17 << 20), ("chat_template.jinja", 17 << 20)],
)
def test_oversized_files_are_not_read(directory: Path, name: str, size: int) -> None:
    (directory / name).touch()
    os.truncate(directory / name, size)  # sparse: takes no space
    with pytest.raises(InputError, match=f"{name}: {size} bytes, at most"):
        TextCodec.open(directory)


def test_odd_special_tokens_are_left_out(directory: Path) -> None:
    config = {"bos_token": {"content": 3}, "eos_token": ["x"], "pad_token": "", "unk_token": "U", "chat_template": "x"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    assert opened(directory).special_tokens == {"unk_token": "U"}


def test_unreadable_files_are_a_storage_error(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(StorageError, match=r"tokenizer\w*\.json: cannot be read: Permission denied"):
        TextCodec.open(directory)


def sequence(kind: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "Sequence", kind: steps}


def replace(old: Any, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old} if isinstance(old, str) else old, "content": new}


MANY_TOKENS = [
    {"id": 400 + number, "content": f"<|{number}|>" * 20, "special": False, "normalized": True}
    | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    for number in range(60_000)
]
NEVER_FAILING = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
SLOW = "(A|A|A|A){11}[^A]|."
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
TEMPLATE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}

HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a panic": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "not a tokenizer: PanicException"),
    "a panic of a decoder": ({"decoder": {"type": "Strip", "content": "a", "start": 9, "stop": 9}}, "PanicException"),
    "an error": ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "z"}}, "not a tokenizer: "),
    "doublings": ({"normalizer": sequence("normalizers", [replace("a", "aa")] * 40)}, "1.1e+12 times as long"),
    "many steps": ({"normalizer": sequence("normalizers", [replace("a", "b")] * 5000)}, "5001 steps, at most 64"),
    "nested steps": (
        {"normalizer": sequence("normalizers", [sequence("normalizers", [replace("☃", "☃☃☃")] * 9)] * 2)},
        "times as long",
    ),
    "a long replacement": ({"normalizer": replace({"Regex": "."}, "x" * 100)}, "101 times as long"),
    "bytes of bytes": ({"pre_tokenizer": sequence("pretokenizers", [BYTES] * 20)}, "its pre_tokenizer can make a text"),
    "repeated texts": (
        {"post_processor": {**TEMPLATE, "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 1000}},
        "its post_processor can make a text 1000 times as long",
    ),
    "an id beyond measure": ({"model": {**NEVER_FAILING, "vocab": {"a": 2**32 - 1}}}, ""),
}


@pytest.mark.parametrize(("parts", "reason"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_tokenizers_are_refused_in_one_line(directory: Path, parts: dict[str, Any], reason: str) -> None:
    change_tokenizer(directory, **parts)
    try:
        opened(directory)
    except InputError as error:
        assert str(error).startswith(str(directory / "tokenizer.json")) and "\n" not in str(error)
        assert len(str(error)) < 600
        assert reason.replace("+", "") in str(error).replace("+", "")
    else:
        assert not reason


def test_a_tokenizer_that_takes_too_long_or_too_much(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_tokenizer(directory, added_tokens=MANY_TOKENS)
    monkeypatch.setattr(tokenizer_file, "TRIAL_SECONDS", 0.2)
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer: it takes more than 0\.2 seconds; copy"):
        opened(directory)
    monkeypatch.setattr(tokenizer_file, "TRIAL_SECONDS", 30)
    monkeypatch.setattr(tokenizer_file, "MEMORY_BYTES", 64 << 20)
    with pytest.raises(InputError, match=r"it (crashes, or it )?needs (too much|more than 64 MiB of) memory"):
        opened(directory)


@pytest.mark.parametrize("letter", ["a", "日", "ж"])
def test_a_pattern_that_takes_forever(directory: Path, letter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    split = {"type": "Split", "pattern": {"Regex": SLOW.replace("A", letter)}, "behavior": "Isolated", "invert": False}
    change_tokenizer(directory, pre_tokenizer=split)
    monkeypatch.setattr(tokenizer_file, "TRIAL_SECONDS", 2)
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer: .*(seconds|PanicException)"):
        opened(directory)


def deep(directory: Path) -> None:
    (directory / "tokenizer.json").write_text('{"normalizer":' + '{"type":"Sequence","normalizers":[' * 5000)


def not_a_file(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    os.mkfifo(directory / "tokenizer.json")


@pytest.mark.parametrize("break_it", [deep, not_a_file])
def test_files_that_no_library_should_see(directory: Path, break_it: Callable[[Path], None]) -> None:
    break_it(directory)
    with pytest.raises(InputError, match=r"tokenizer\.json: not a "):
        opened(directory)


def test_a_panic_after_the_trial_is_an_error_all_the_same() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    codec = TextCodec(tokenizer)
    tokenizer.pre_tokenizer = pre_tokenizers.FixedLength(0)
    with pytest.raises(InputError, match=r"^text: cannot be encoded: the tokenizers library panics \("):
        codec.encode("a")
    tokenizer.decoder = decoders.Strip("a", 9, 9)
    with pytest.raises(InputError, match=r"^token ids: cannot be decoded: the tokenizers library panics \("):
        codec.decode([0])


def test_texts_and_ids_are_counted_first(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    from l4export.runtimes.text import codec

    monkeypatch.setattr(codec, "TEXT_CHARACTERS", 5)
    monkeypatch.setattr(codec, "MOST_IDS", 5)
    opened_codec = opened(directory)
    with pytest.raises(InputError, match="text: 6 characters, at most 5 are encoded"):
        opened_codec.encode("abcdef")
    with pytest.raises(InputError, match="token ids: 6, at most 5 are decoded"):
        opened_codec.decode([1] * 6)


def test_without_the_package(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fake(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "tokenizers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(EnvironmentLacks, match=r"tokenizers is not installed: pip install 'l4export\[cpu\]'"):
        TextCodec.open(directory)
