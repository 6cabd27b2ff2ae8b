"""Text streams of the native library give the pieces that the Python runtime gives, push by push."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tiny_tokenizers import HARD, SPECIAL, opened, write_tokenizer

from l4export.runtimes.text.codec import TextCodec
from l4export.runtimes.text.stop_strings import SpokenText
from native_library import NativeError
from native_tokenizer import NativeTokenizer

STOPS = [
    "the",
    "fox",
    "o",
    " ",
    "日本",
    "本",
    "\ufffd",
    "aaaa",
    "aaab",
    "🙂",
    "\n\n",
    "brown fox",
    "wn f",
    "never said",
]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextCodec, NativeTokenizer]:
    folder = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return opened(folder), NativeTokenizer(folder)


def _pieces(both: tuple[TextCodec, NativeTokenizer], ids: list[int], stops: list[str]) -> None:
    codec, native = both
    spoken, stream = SpokenText(codec.stream(), stops), native.stream(stops)
    for token in [*ids, None]:
        before = len(spoken.pieces)
        if token is None:
            spoken.flush()
        else:
            spoken.push(token)
        expected = "".join(spoken.pieces[before:])
        given = stream.flush() if token is None else stream.push(token)
        assert given == expected, (ids, stops)
        assert stream.stopped == (-1 if spoken.found is None else stops.index(spoken.found)), (ids, stops)


@pytest.mark.parametrize("seed", range(10))
def test_texts(seed: int, both: tuple[TextCodec, NativeTokenizer]) -> None:
    rng = random.Random(seed)
    words = ["the", " quick", " brown", " fox", "🙂", "日本語", "a", "aaa", "b", "\ufffd", "\n", HARD, *SPECIAL]
    for _ in range(60):
        text = "".join(rng.choice(words) for _ in range(rng.randint(0, 12)))
        ids = both[0].encode(text)
        if rng.random() < 0.3:  # cut within characters
            ids = [token for token in ids if rng.random() < 0.8]
        _pieces(both, ids, rng.sample(STOPS, rng.randint(0, 4)))


@pytest.mark.parametrize("seed", range(10))
def test_random_ids(seed: int, both: tuple[TextCodec, NativeTokenizer]) -> None:
    rng = random.Random(seed)
    for _ in range(60):
        ids = [rng.randrange(rng.choice([262, 420])) for _ in range(rng.randint(0, 40))]
        _pieces(both, ids, rng.sample(STOPS, rng.randint(0, 3)))


def test_the_longest_of_those_that_end_together(both: tuple[TextCodec, NativeTokenizer]) -> None:
    ids = both[0].encode("the quick brown fox")
    for stops in (["wn", "own", "rown"], ["rown", "wn"], ["brown", "brown"], ["fox", "brown fox", "q"]):
        _pieces(both, ids, stops)


@pytest.mark.parametrize(
    ("stops", "reason"),
    [
        ([""], "give texts of at least one character"),
        (["a", ""], "give texts of at least one character"),
        (["x"] * 65, "at most 64 of at most 1024 characters"),
        (["é" * 1025], "at most 64 of at most 1024 characters"),
    ],
)
def test_stop_strings_that_are_refused(stops: list[str], reason: str, both: tuple[TextCodec, NativeTokenizer]) -> None:
    with pytest.raises(NativeError, match=reason):
        both[1].stream(stops)


def test_a_stream_outlives_its_tokenizer(both: tuple[TextCodec, NativeTokenizer], tmp_path: Path) -> None:
    native = NativeTokenizer(write_tokenizer(tmp_path))
    stream = native.stream(["é" * 1024])
    ids = native.encode("the fox", add_special_tokens=False)
    del native
    assert "".join(stream.push(token) for token in ids) + stream.flush() == "the fox"
