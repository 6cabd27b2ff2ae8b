"""Text to token ids and back, against the tokenizers library."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import HARD, byte_level

from l4export.errors import InputError
from l4export.runtimes.text.codec import TextCodec

TOKENIZER = byte_level()
CODEC = TextCodec(byte_level())


def test_a_directory_without_a_tokenizer_has_no_codec(tmp_path: Path) -> None:
    assert TextCodec.open(tmp_path) is None
    assert TextCodec.open(str(tmp_path / "absent")) is None


@settings(deadline=None)
@given(st.text(max_size=60))
def test_text_survives(text: str) -> None:
    assert CODEC.decode(CODEC.encode(text)) == text
    assert CODEC.encode(text) == TOKENIZER.encode(text).ids
    assert CODEC.encode(text, add_special_tokens=False) == TOKENIZER.encode(text).ids[1:]


def test_special_tokens_show_on_request() -> None:
    ids = CODEC.encode("the fox<|eot|>")
    assert CODEC.decode(ids) == "the fox"
    assert CODEC.decode(ids, skip_special_tokens=False) == "<|begin_of_text|>the fox<|eot|>"


def test_encode_gives_every_token_and_no_padding() -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=64)
    assert TextCodec(tokenizer).encode(HARD) == TOKENIZER.encode(HARD).ids


@pytest.mark.parametrize("ids", [[-1], [2**40]])
def test_impossible_ids_are_refused(ids: list[int]) -> None:
    with pytest.raises(InputError, match=r"token ids?.*vocabulary"):
        CODEC.decode(ids)
    with pytest.raises(InputError, match=r"token ids?.*vocabulary"):
        CODEC.stream().push(ids[0])


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(InputError, match="character 2 is a lone surrogate"):
        CODEC.encode("ab\ud800")
