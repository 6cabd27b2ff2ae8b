"""Meta's tokenizer.model as a tokenizer.json: the same tokens as the definition of tiktoken's merging gives."""

from __future__ import annotations

import base64
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from meta_folders import write_meta_folder
from tiny_tokenizers import CORPUS, HARD
from tokenizers import Tokenizer

from l4export.checkpoint import open_checkpoint, write_tokenizer_json
from l4export.checkpoint.meta_tokenizer import _PATTERN, SPECIAL_TOKENS
from l4export.errors import InputError
from workshop import Workshop

TEXTS = [
    *CORPUS,
    HARD,
    "Don't, WE'LL  SEE: 12345 + x/y\r\n\n  end ",
    "",
    " ",
    "\n\n\n",
    "aaaaaaaaaaa",
    "ÀÉ'S \uff44\u2019s",
]


def merged(piece: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The definition: of all neighbours, those whose union has the lowest rank, the first of equals."""
    parts = [bytes([byte]) for byte in piece]
    if piece in ranks:
        return [piece]
    while True:
        unions = [(ranks[a + b], at) for at, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]
        if not unions:
            return parts
        _, at = min(unions)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def encoded(text: str, ranks: dict[bytes, int]) -> list[int]:
    return [ranks[token] for piece in regex.findall(_PATTERN, text) for token in merged(piece.encode(), ranks)]


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    """All bytes, in an order of no meaning, and 300 tokens learned one after the other, as such files come about."""
    found = {bytes([byte * 7 % 256]): byte for byte in range(256)}
    words = Counter(piece.encode() for text in TEXTS * 2 for piece in regex.findall(_PATTERN, text))
    while len(found) < 556:
        pairs: Counter[bytes] = Counter()
        for word, count in words.items():
            parts = merged(word, {token: rank for token, rank in found.items() if token != word})
            for a, b in itertools.pairwise(parts):
                pairs[a + b] += count
        token = next((token for token, _ in pairs.most_common() if token not in found), None)
        if token is None:
            break
        found[token] = len(found)
    return found


def write_model(path: Path, ranks: dict[bytes, int]) -> None:
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, ranks: dict[bytes, int]) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_model(folder / "tokenizer.model", ranks)
    return Tokenizer.from_file(str(write_tokenizer_json(folder)))


def test_texts(tokenizer: Tokenizer, ranks: dict[bytes, int]) -> None:
    assert len(ranks) > 350
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert ids == [len(ranks), *encoded(text, ranks)]
        assert tokenizer.decode(ids[1:]) == text


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("the quick,  'sDW\n1é日🙂/") | st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text(tokenizer: Tokenizer, ranks: dict[bytes, int], text: str) -> None:
    assert tokenizer.encode(text, add_special_tokens=False).ids == encoded(text, ranks)


def test_special_tokens(tokenizer: Tokenizer, ranks: dict[bytes, int]) -> None:
    """Their distances from the first, which has the id 200000 in the released models."""
    places = {"begin_of_text": 0, "end_of_text": 1, "header_start": 5, "header_end": 6, "eom": 7, "eot": 8, "step": 9}
    places |= {"python_start": 16, "python_end": 17, "finetune_right_pad": 18, "image_start": 80, "image_end": 81}
    places |= {"tile_x_separator": 84, "tile_y_separator": 85, "image": 90, "patch": 92}
    places |= {"vision_reserved_special_token_1047": 1133, "reasoning_reserved_special_token_0": 1134}
    places |= {"reasoning_thinking_start": 1142, "reasoning_thinking_end": 1143, "reserved_special_token_0": 1144}
    assert len(set(SPECIAL_TOKENS)) == 2048
    for name, place in places.items():
        assert SPECIAL_TOKENS[place] == f"<|{name}|>"
        assert tokenizer.token_to_id(f"<|{name}|>") == len(ranks) + place
    assert tokenizer.encode("a<|eot|>b", add_special_tokens=False).ids[1:-1] == [len(ranks) + 8]


def test_a_build_says_how_to_make_it(workshop: Workshop, tmp_path: Path, ranks: dict[bytes, int]) -> None:
    folder = write_meta_folder(workshop.checkpoint("scout"), tmp_path / "m", 1)
    write_model(folder / "tokenizer.model", ranks)
    assert any("write_tokenizer_json(FOLDER)" in note for note in open_checkpoint(folder).notes())
    write_tokenizer_json(folder)
    assert not any("tokenizer" in note for note in open_checkpoint(folder).notes())
    assert json.loads((folder / "tokenizer_config.json").read_text())["bos_token"] == "<|begin_of_text|>"
    with pytest.raises(InputError, match=r"tokenizer\.json: is there already"):
        write_tokenizer_json(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "0 tokens, which must be all bytes"),
        ("YQ== 0\nYg== 2\n", "line 2 is not a new token of rank 1"),
        ("YQ== 0\nYQ== 1\n", "line 2 is not a new token"),
        ("YQ 0\n", "line 1 is not a token in base64"),
        ("YQ==\n", "line 1 is not a token"),
        (base64.b64encode(bytes(300)).decode() + " 0\n", "line 1 is not a new token"),
        ("\x0a\x0e\x0a\x05<unk>", "line 1 is not a token"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "tokenizer.model").write_text(text)
    with pytest.raises(InputError, match=words):
        write_tokenizer_json(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
