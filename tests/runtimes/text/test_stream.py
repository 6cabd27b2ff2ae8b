"""Streams of tokens: what they show together is what all of the tokens decode to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import HARD, byte_level
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from l4export.runtimes.text.codec import TextCodec
from l4export.runtimes.text.stream import TextStream

TOKENIZER = byte_level()
CODEC = TextCodec(byte_level())
IDS = st.lists(st.integers(0, TOKENIZER.get_vocab_size() + 3), max_size=80)
BYTE_IDS = [TOKENIZER.token_to_id(symbol) for symbol in sorted(pre_tokenizers.ByteLevel.alphabet())]


def pieces(stream: TextStream, ids: list[int]) -> list[str]:
    return [*(stream.push(token) for token in ids), stream.flush()]


@settings(deadline=None, max_examples=300)
@given(IDS | st.lists(st.sampled_from(BYTE_IDS), max_size=80), st.booleans())
def test_a_stream_makes_what_decode_makes(ids: list[int], skip: bool) -> None:
    """Any ids at all: unfinished and invalid bytes, special tokens between the bytes of a character, unknown ids."""
    assert "".join(pieces(CODEC.stream(skip), ids)) == CODEC.decode(ids, skip_special_tokens=skip)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=30) | st.text(st.sampled_from(HARD), max_size=60))
def test_a_stream_of_text_never_shows_an_unfinished_character(text: str) -> None:
    ids = CODEC.encode(text)
    shown = ""
    stream = CODEC.stream()
    for count, token in enumerate(ids, 1):
        shown += stream.push(token)
        assert text.startswith(shown)
        assert shown == CODEC.decode(ids[:count]).removesuffix("\ufffd")
    assert shown + stream.flush() == text


def test_a_character_comes_with_its_last_byte() -> None:
    codec = TextCodec(byte_level(["nothing"]))
    ids = codec.encode("🙂!", add_special_tokens=False)
    assert len(ids) == 5
    assert pieces(codec.stream(), ids) == ["", "", "", "🙂", "!", ""]
    assert pieces(codec.stream(), ids[:3]) == ["", "", "", "\ufffd"]


def test_a_flushed_stream_starts_anew() -> None:
    stream = CODEC.stream()
    ids = CODEC.encode(HARD)
    assert "".join(pieces(stream, ids[:7])) == CODEC.decode(ids[:7])
    assert "".join(pieces(stream, ids)) == HARD
    assert stream.flush() == ""


@pytest.mark.parametrize("token", ["a", "é", "special", "unknown", "invalid"])
def test_work_per_token_is_bounded(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no character is ever finished: the window does not grow with invalid bytes or skipped tokens."""
    symbol = {"special": 4, "unknown": 10**6, "invalid": TOKENIZER.token_to_id("ÿ")}
    ids = [symbol[token]] * 500 if token in symbol else CODEC.encode(token, add_special_tokens=False) * 500
    lengths: list[int] = []
    decode = TextCodec.decode

    def watched(self: TextCodec, window: list[int], skip_special_tokens: bool = True) -> str:
        lengths.append(len(window))
        return decode(self, window, skip_special_tokens)

    expected = CODEC.decode(ids)
    monkeypatch.setattr(TextCodec, "decode", watched)
    assert "".join(pieces(CODEC.stream(), ids)) == expected
    assert max(lengths) <= 2 * TextStream.CONTEXT and len(lengths) <= 2 * len(ids) + 1


def test_streams_keep_the_spaces_of_other_decoders() -> None:
    words = {"▁the": 0, "▁fox": 1, "es": 2, "▁": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="▁"))
    tokenizer.decoder = decoders.Metaspace()
    codec = TextCodec(tokenizer)
    ids = [0, 1, 2, 3, 0] * 20
    assert "".join(pieces(codec.stream(), ids)) == codec.decode(ids)
