"""What stands in tokenizer.json and beside it is done as the Python package does it, or refused by name."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import HARD, SPECIAL, change_tokenizer, opened, write_tokenizer
from tokenizers import Tokenizer

from fuzz_tokenizer import mutate_tokenizer
from fuzz_valid import tokenizers
from l4export.runtimes.text.text_files import read_text_files
from l4export.runtimes.text.tokenizer_setup import load_tokenizer
from native_library import NativeError
from native_tokenizer import NativeTokenizer

KJV = Path(__file__).parents[3] / "examples/kjv/model"


def _added(rng: random.Random) -> list[dict[str, Any]]:
    letters = [
        "<",
        "a",
        "b",
        " ",
        "  ",
        "\n",
        "|",
        ">",
        "é",
        "_",
        "\u0301",
        "1",
        "\u200d",
        "<a>",
        "ab",
        "\u3000",
        "\x1f",
    ]
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    contents = ["".join(rng.choice(letters) for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(1, 6))]
    contents += rng.sample(["Ġthe", "the", "e", "ĠLord", "日"], rng.randint(0, 2))
    return [{"id": 0, "content": content, **{flag: rng.random() < 0.4 for flag in flags}} for content in contents]


@pytest.mark.parametrize("seed", range(20))
def test_added_tokens(seed: int, tmp_path: Path) -> None:
    """With all flags, in all places, also where they overlap. (Where the library panics, the text is refused.)"""
    rng = random.Random(seed)
    shutil.copy(KJV / "tokenizer.json", tmp_path)
    added = _added(rng)
    change_tokenizer(tmp_path, added_tokens=added)
    python, native = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), NativeTokenizer(tmp_path)
    pieces = ["the", " ", "  ", "x", "\n", "a", "\u3000", *(token["content"] for token in added)]
    for _ in range(100):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(0, 12)))
        if (expected := _ids_or_none(python, text)) is None:
            with pytest.raises(NativeError, match="overlaps"):
                native.encode(text)
            continue
        assert native.encode(text) == expected, (text, added)
        for skip in (True, False):
            assert native.decode(expected, skip) == python.decode(expected, skip)


def _ids_or_none(tokenizer: Tokenizer, text: str) -> list[int] | None:
    try:
        return list(tokenizer.encode(text).ids)
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        return None


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "more special tokens": {
        "additional_special_tokens": ["<|user|>", {"content": "quick"}],
        "image_token": "<|image|>",
    },
    "named ones": {"extra_special_tokens": {"thought_token": "brown", "x": "fox"}, "mask_token": {"content": "dog"}},
    "decoder": {
        "added_tokens_decoder": {
            "400": {"content": "quick", "special": False, "normalized": True, "lstrip": True},
            "21": {"content": "<|eot|>", "special": True, "normalized": False},
            "3": {"content": "the", "single_word": True},
        }
    },
    "special tokens as text": {"split_special_tokens": True},
    "control tokens": {"chat_control_tokens": ["fox", 1], "added_tokens_decoder": {"5": {"content": "fox"}}},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_files_beside_it(config: dict[str, Any], tmp_path: Path) -> None:
    write_tokenizer(tmp_path, **config)
    _compare_codecs(tmp_path)


def test_older_files_beside_it(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"quick": 401, "brown": 400, "x": "no id", "<|eot|>": 4}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "fox", "sep_token": {"content": "dog"}}))
    _compare_codecs(tmp_path)


def test_padding_and_truncation_are_ignored(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    padding = {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    truncation = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    change_tokenizer(tmp_path, padding=padding, truncation=truncation)
    _compare_codecs(tmp_path)


def _compare_codecs(folder: Path) -> None:
    codec, native = opened(folder), NativeTokenizer(folder)
    words = ["the", "quick", "brown", "fox", "dog", " ", "  ", *SPECIAL, "<|user|>", "<|image|>", "x"]
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice(words) for _ in range(rng.randint(0, 9)))
        for as_text in (False, True):
            assert native.encode(text, True, as_text) == codec.encode(text, True, as_text), (text, as_text)
            ids = codec.encode(text, False, as_text)
            assert native.encode(text, False, as_text) == ids
            assert [native.decode(ids, skip) for skip in (True, False)] == [
                codec.decode(ids, skip) for skip in (True, False)
            ]


def test_special_token_that_is_ordinary_text(tmp_path: Path) -> None:
    """A vocabulary that makes a special token of its letters cannot keep it as text."""
    write_tokenizer(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    change_tokenizer(tmp_path, model=model | {"ignore_merges": True}, pre_tokenizer=split)
    native = NativeTokenizer(tmp_path)
    with pytest.raises(NativeError, match=r"text: the tokenizer makes the special token '<\|eot\|>' of ordinary text"):
        native.encode("<|eot|>", special_tokens_as_text=True)
    assert native.encode("x<|eot|>", False, True) == opened(tmp_path).encode("x<|eot|>", False, True)


# ---- what is refused

_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_SPLIT = {"type": "Split", "pattern": {"Regex": r"\p{L}+"}, "behavior": "Isolated", "invert": False}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"normalizer": {"type": "NFC"}}, "the normalizer 'NFC', which the native runtime does not have"),
        ({"pre_tokenizer": None}, "a tokenizer that is not byte-level"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "the pre_tokenizer 'Whitespace'"),
        ({"pre_tokenizer": _sequence(_SPLIT, _LEVEL)}, r"the Split pattern '\\p{L}\+', neither that of Llama 3"),
        ({"pre_tokenizer": _sequence(_SPLIT | {"invert": True}, _LEVEL)}, "a Split that does not isolate"),
        ({"pre_tokenizer": _LEVEL | {"add_prefix_space": True}}, "adds a space before a text"),
        ({"decoder": {"type": "Fuse"}}, "the decoder 'Fuse'"),
        ({"decoder": None}, "a decoder that is not ByteLevel alone"),
        ({"post_processor": {"type": "BertProcessing", "sep": ["a", 0], "cls": ["b", 1]}}, "post_processor 'BertProc"),
        ({"version": "2.0"}, "the version '2.0'"),
        ({"model": {"type": "WordPiece"}}, "the model 'WordPiece'"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}}}, "not a tokenizer: its model lacks vocab or merges"),
        (
            {"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}},
            "the id 0 is that of two tokens",
        ),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "the id -1, which must be 0 to 16777216"),
        (
            {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]}},
            "the merge of 'a' and 'a' names a",
        ),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}, "the merge 'a' is not of two tokens"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": [], "dropout": 0.5}}, "dropout"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": [], "end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "a"}}, "a token for unknown ones"),
        ({"added_tokens": [{"id": 1, "content": "x"}]}, "an added token lacks its content, its id or one of its flags"),
    ],
)
def test_refusals(parts: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    change_tokenizer(tmp_path, **parts)
    with pytest.raises(NativeError, match=reason) as raised:
        NativeTokenizer(tmp_path)
    assert raised.value.status == 2
    assert str(raised.value).startswith(f"{tmp_path}/tokenizer.json: ")
    assert "\n" not in str(raised.value)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(NativeError, match=r"has no tokenizer.json, which text and stop strings need"):
        NativeTokenizer(tmp_path)


@pytest.mark.parametrize(
    "text", [b"\xff", b"abc\xe4", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xc0\xaf", b"a" * 40 + b"\x80", b"aaaaaaaa\xe9"]
)
def test_text_that_is_not_utf8(text: bytes) -> None:
    with pytest.raises(NativeError, match=r"text: byte \d+ is not UTF-8"):
        NativeTokenizer(KJV).encode(text)


def test_arguments() -> None:
    native = NativeTokenizer(KJV)
    with pytest.raises(NativeError, match="token ids: one is negative"):
        native.decode([1, -1])
    with pytest.raises(NativeError, match="token id -5 is negative"):
        native.stream().push(-5)


def test_order_in_the_file_makes_no_difference(tmp_path: Path) -> None:
    """Merges before the vocabulary, added tokens behind the model, both forms of merges."""
    raw = json.loads((KJV / "tokenizer.json").read_text())
    model = {"merges": [" ".join(pair) for pair in raw["model"]["merges"]], **raw["model"]}
    assert next(iter(model)) == "merges"
    turned = dict(reversed((raw | {"model": {**model, "merges": [" ".join(m) for m in model["merges"]]}}).items()))
    (tmp_path / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(turned).encode())
    before, after = NativeTokenizer(KJV), NativeTokenizer(tmp_path)
    for text in (HARD, "In the beginning God created the heaven and the earth. " * 9, *SPECIAL):
        assert after.encode(text) == before.encode(text)


# ---- damaged files


@pytest.mark.parametrize("seed", range(8))
def test_damaged_files(seed: int, tmp_path: Path) -> None:
    """They are refused in one line, or are tokenizers that do what the Python package says."""
    _damage(range(seed * 25, seed * 25 + 25), tmp_path)


@pytest.mark.slow
def test_many_damaged_files(tmp_path: Path) -> None:
    _damage(range(1000, 5000), tmp_path)


def _damage(seeds: Sequence[int], folder: Path) -> None:
    files = tokenizers()["bpe"]
    for name, content in files.items():
        (folder / name).write_bytes(content)
    added = read_text_files(folder).added
    texts = ("And God said, <|begin|>Let there be light", "", "a" * 400, HARD, "earth<|x|>")
    for seed in seeds:
        data, _ = mutate_tokenizer(files["tokenizer.json"], random.Random(seed))
        (folder / "tokenizer.json").write_bytes(data)
        try:
            native = NativeTokenizer(folder)
        except NativeError as refused:
            assert refused.status == 2
            assert "\n" not in str(refused)
            continue
        ids = [native.encode(text) for text in texts]
        try:
            python = load_tokenizer(data, added)
        except Exception:  # what the Python package alone refuses does no harm here
            continue
        python.no_padding()
        python.no_truncation()
        assert ids == [python.encode(text).ids for text in texts], seed
        assert [native.decode(some, False) for some in ids] == [python.decode(some, False) for some in ids], seed


def test_cut_files(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_bytes()
    for end in [*range(0, 300), *range(300, len(whole) - 1, 97)]:
        (tmp_path / "tokenizer.json").write_bytes(whole[:end])
        with pytest.raises(NativeError, match=r"tokenizer.json: not"):
            NativeTokenizer(tmp_path)
