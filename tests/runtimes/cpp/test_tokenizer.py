"""Tokenizers of the native library make of every text what the Python package makes of it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from repository_files import repository_texts
from tiny_tokenizers import HARD, IMAGE, SPECIAL, like_llama4, write_tokenizer
from tokenizers import Tokenizer

from l4export.checkpoint.sample_tokenizer import write_tokenizer as write_sample_tokenizer
from native_tokenizer import NativeTokenizer

ROOT = Path(__file__).parents[3]
KINDS = ("kjv", "shapes", "llama4", "gpt2", "bytes")
CHARACTERS = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
PIECES = [
    *(" ", "  ", "\n", "\t", "\r\n", "\r", "\x85", "\0", "\u00a0", "\u3000", "\u180e"),
    *("'", "s", "S", "\u017f", "re", "'LL", "A", "b", "Ω", "ж", "é", "ß", "ǅ", "ʰ", "\u0301", "中", "日本"),
    *("\u0661", "9", "42", "1234", "_", "-", "/", "//\n", "!", "?", ".", "😀", "\u200d", "\ufffd", "\U0001f469\u200d"),
    *("don't", "HTTP", "camelCase", "the", " And", *SPECIAL[:4], "<|eot|", "|>"),
]


def _files() -> list[Path]:
    """Texts of this repository: code and documentation."""
    return sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("runtimes/**/*.py"), *ROOT.glob("runtimes/cpp/src/**/*.cpp")])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tokenizer of each kind."""
    root = tmp_path_factory.mktemp("tokenizers")
    made = {name: ROOT / "examples" / name / "model" for name in ("kjv", "shapes")}
    made |= {name: root / name for name in ("llama4", "gpt2", "bytes")}
    for name in ("llama4", "bytes"):
        made[name].mkdir()
    corpus = [path.read_text() for path in _files()[:60]] + [HARD] * 9
    like_llama4(corpus).save(str(made["llama4"] / "tokenizer.json"))
    write_tokenizer(made["gpt2"])
    ids = {"boi_token_index": 12, "eoi_token_index": 13, "image_token_index": 40}
    text = {"vocab_size": 600, "bos_token_id": 0, "pad_token_id": 11}
    write_sample_tokenizer(made["bytes"], {"text_config": text, **ids})
    return made


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[Tokenizer, NativeTokenizer]:
    return _both(folders[request.param])


def _both(folder: Path) -> tuple[Tokenizer, NativeTokenizer]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")), NativeTokenizer(folder)


def random_texts(count: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(count):
        odd = rng.choice([0.0, 0.1, 0.5])
        length = rng.choice([3, 20, 60])
        yield "".join(
            rng.choice(CHARACTERS) if rng.random() < odd else rng.choice(PIECES) for _ in range(rng.randint(1, length))
        )


def differences(both: tuple[Tokenizer, NativeTokenizer], texts: Iterable[str], decoded: bool = False) -> list[str]:
    """The texts of which the two make something else."""
    python, native = both
    given = list(texts)
    found = []
    for text, encoding in zip(given, python.encode_batch_fast(given, add_special_tokens=False), strict=True):
        ids = native.encode(text, add_special_tokens=False)
        good = ids == encoding.ids
        if good and decoded:
            good = all(native.decode(ids, skip) == python.decode(ids, skip) for skip in (True, False))
        if not good:
            found.append(text)
    return found


def code_points(every: int = 1) -> Iterator[str]:
    """Texts in which each code point stands in words, before and behind all kinds of others."""
    for at in range(0, len(CHARACTERS), 64 * every):
        yield "".join(f"x{c}Y {c}{c}1 {c}'s\n {c}/\n" for c in CHARACTERS[at : at + 64])


def test_hard_texts(both: tuple[Tokenizer, NativeTokenizer]) -> None:
    python, native = both
    runs = [piece * count for piece in PIECES for count in (2, 3, 300)]
    texts = [
        "",
        " ",
        HARD,
        *PIECES,
        *runs,
        *(a + b + c for a in PIECES for b in (" ", "'s", "\n") for c in PIECES[::3]),
    ]
    assert differences(both, texts, decoded=True) == []
    for text in (HARD, "", "the " + SPECIAL[0]):
        assert native.encode(text) == python.encode(text).ids


def test_random_texts(both: tuple[Tokenizer, NativeTokenizer]) -> None:
    assert differences(both, random_texts(1500, seed=1), decoded=True) == []


def test_code_points(both: tuple[Tokenizer, NativeTokenizer]) -> None:
    assert differences(both, code_points(every=32)) == []


def test_files(both: tuple[Tokenizer, NativeTokenizer]) -> None:
    assert differences(both, [path.read_text() for path in _files()[::12]], decoded=True) == []


@pytest.mark.slow
def test_all_code_points(both: tuple[Tokenizer, NativeTokenizer]) -> None:
    assert differences(both, code_points()) == []


@pytest.mark.slow
def test_many_random_texts(both: tuple[Tokenizer, NativeTokenizer]) -> None:
    assert differences(both, random_texts(100_000 // len(KINDS), seed=2), decoded=True) == []


@pytest.mark.slow
def test_all_files(both: tuple[Tokenizer, NativeTokenizer]) -> None:
    assert differences(both, repository_texts(), decoded=True) == []


@pytest.mark.slow
def test_long_runs(both: tuple[Tokenizer, NativeTokenizer]) -> None:
    texts = [
        piece * (200_000 // len(piece))
        for piece in ("a", "ab", " ", "\n", "1", "!", "é", "日", "<", " \n", "A", "\u0301")
    ]
    assert differences(both, texts, decoded=True) == []


def test_random_ids(both: tuple[Tokenizer, NativeTokenizer]) -> None:
    """Cut characters, bytes that are no UTF-8, special tokens, ids without a token."""
    python, native = both
    rng = random.Random(3)
    highest = max(python.get_vocab().values())
    for _ in range(1500):
        ids = [rng.randrange(min(highest + 3, rng.choice([260, 1 << 20]))) for _ in range(rng.randint(0, 12))]
        for skip in (True, False):
            assert native.decode(ids, skip) == python.decode(ids, skip), ids


def test_ids_of_tokens(both: tuple[Tokenizer, NativeTokenizer]) -> None:
    python, native = both
    for token in [*list(python.get_vocab())[:400], *SPECIAL, *IMAGE, "", "no such token", " ", "日", "\x01"]:
        found = python.token_to_id(token)
        assert native.token_id(token) == (-1 if found is None else found), token
