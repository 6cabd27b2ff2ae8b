"""Llama 4's released tokenizer, made from `llama-models` of the package index: the same ids as the Python package."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import time
from pathlib import Path
from types import ModuleType

import pytest
from repository_files import repository_texts
from tokenizers import Tokenizer

from l4export.checkpoint import write_tokenizer_json
from native_tokenizer import NativeTokenizer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def _released_texts() -> ModuleType:
    """The test of the Python side: its texts, and how the file is fetched."""
    path = ROOT / "tests/checkpoint/test_meta_tokenizer_released.py"
    spec = importlib.util.spec_from_file_location("released_texts", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, NativeTokenizer]:
    """Both forms of the file: as l4export writes it, and as the package does (28 MB, merges as pairs)."""
    root = tmp_path_factory.mktemp("released")
    _released_texts().fetch(["llama-models"], root / "packages")
    shutil.copy(root / "packages/llama_models/llama4/tokenizer.model", root)
    python = Tokenizer.from_file(str(write_tokenizer_json(root)))
    saved = root / "saved"
    saved.mkdir()
    python.save(str(saved / "tokenizer.json"))
    assert (saved / "tokenizer.json").stat().st_size > 27e6
    began = time.process_time()
    native = NativeTokenizer(saved)
    assert time.process_time() - began < 3, "opening it takes a third of a second"
    short = NativeTokenizer(root)
    for text in _released_texts().TEXTS:
        assert short.encode(text) == native.encode(text)
    return python, native


def _same(both: tuple[Tokenizer, NativeTokenizer], texts: list[str]) -> None:
    python, native = both
    for text, encoding in zip(texts, python.encode_batch_fast(texts), strict=True):
        ids = native.encode(text)
        assert ids == encoding.ids, text[:100]
        for skip in (True, False):
            assert native.decode(ids, skip) == python.decode(ids, skip), text[:100]


def test_hard_texts(released: tuple[Tokenizer, NativeTokenizer]) -> None:
    _same(released, _released_texts().TEXTS)


def test_random_texts(released: tuple[Tokenizer, NativeTokenizer]) -> None:
    _same(released, _released_texts().random_texts(20_000))


def test_files(released: tuple[Tokenizer, NativeTokenizer]) -> None:
    _same(released, list(repository_texts()))


def test_code_points(released: tuple[Tokenizer, NativeTokenizer]) -> None:
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    _same(
        released, ["".join(f"x{c}Y {c}{c}1 {c}'s\n" for c in points[at : at + 64]) for at in range(0, len(points), 64)]
    )


def test_random_ids(released: tuple[Tokenizer, NativeTokenizer]) -> None:
    python, native = released
    rng = random.Random(0)
    for _ in range(20_000):
        ids = [rng.randrange(rng.choice([300, 202_100])) for _ in range(rng.randint(1, 12))]
        for skip in (True, False):
            assert native.decode(ids, skip) == python.decode(ids, skip), ids


def test_ids_of_tokens(released: tuple[Tokenizer, NativeTokenizer]) -> None:
    python, native = released
    for token, number in python.get_vocab().items():
        assert native.token_id(token) == number, json.dumps(token)
