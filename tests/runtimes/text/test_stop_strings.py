"""Stop strings: the text before the first of them, wherever tokens begin and end, and nothing too early."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import HARD, byte_level

from l4export.runtimes.text.codec import TextCodec
from l4export.runtimes.text.stop_strings import SpokenText

CODEC = TextCodec(byte_level())
SINGLE_BYTES = TextCodec(byte_level(["nothing"]))
FEW = st.text(st.sampled_from("ab🙂é\n"), max_size=24)
STOPS = st.lists(st.text(st.sampled_from("ab🙂é\n"), min_size=1, max_size=4), max_size=4)


def plain(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Word for word: the first end of a stop string, and of those that end there the longest."""
    for end in range(1, len(text) + 1):
        if there := [stop for stop in stops if text[:end].endswith(stop)]:
            longest = max(there, key=len)
            return text[: end - len(longest)], longest
    return text, None


def spoken(codec: TextCodec, ids: list[int], stops: list[str]) -> SpokenText:
    text = SpokenText(codec.stream(), stops)
    for token in ids:
        text.push(token)
    text.flush()
    return text


@settings(deadline=None, max_examples=300)
@given(FEW | st.text(st.sampled_from(HARD), max_size=40), STOPS)
def test_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    """With tokens of many characters, and with tokens of a byte: where they begin makes no difference."""
    for codec in (CODEC, SINGLE_BYTES):
        found = spoken(codec, codec.encode(text, add_special_tokens=False), stops)
        assert ("".join(found.pieces), found.found) == plain(text, stops)


@settings(deadline=None, max_examples=200)
@given(FEW, STOPS)
def test_nothing_is_given_that_could_begin_a_stop_string(text: str, stops: list[str]) -> None:
    """And nothing else is held back."""
    codec = SINGLE_BYTES
    stream, said, due = SpokenText(codec.stream(), stops), b"", text.encode()
    for token in codec.encode(text, add_special_tokens=False):
        stream.push(token)
        said += due[len(said) : len(said) + 1]
        if stream.found is not None:
            break
        whole, given = said.decode(errors="ignore"), "".join(stream.pieces)
        longest = max((n for stop in stops for n in range(len(stop)) if whole.endswith(stop[:n])), default=0)
        assert given == whole[: len(whole) - longest]


def test_a_stop_string_across_tokens_and_bytes() -> None:
    stream = SpokenText(SINGLE_BYTES.stream(), ["🙂!"])
    pieces = []
    for token in SINGLE_BYTES.encode("a🙂b🙂!c", add_special_tokens=False):
        stream.push(token)
        pieces.append("".join(stream.pieces))
    assert pieces == ["a"] * 5 + ["a🙂b"] * 7
    assert stream.found == "🙂!"
    stream.flush()
    assert stream.pieces == ["a", "🙂b"]


@pytest.mark.parametrize(
    ("stops", "text", "found"), [(["abcd", "bc"], "xa", "bc"), (["b", "ab"], "x", "ab"), (["ab", "abc"], "x", "ab")]
)
def test_the_stop_string_that_is_complete_first_ends_it(stops: list[str], text: str, found: str) -> None:
    ended = spoken(CODEC, CODEC.encode("xabcd", add_special_tokens=False), stops)
    assert ("".join(ended.pieces), ended.found) == (text, found)


def test_special_tokens_are_no_text() -> None:
    ids = [*CODEC.encode("a", add_special_tokens=False), 4, *CODEC.encode("b", add_special_tokens=False)]
    assert "".join(spoken(CODEC, ids, ["<|eot|>"]).pieces) == "ab"
    assert spoken(CODEC, ids, ["ab"]).found == "ab"


def test_an_unfinished_character_comes_at_the_end() -> None:
    ids = SINGLE_BYTES.encode("a🙂", add_special_tokens=False)[:-1]
    assert spoken(SINGLE_BYTES, ids, ["z"]).pieces == ["a", "\ufffd"]
