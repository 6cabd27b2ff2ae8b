"""The `tokenizers` library's tokenizer, set up as transformers does. Helper processes import it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["load_tokenizer"]

_BOM = b"\xef\xbb\xbf"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def load_tokenizer(data: bytes, added: Sequence[Mapping[str, Any]]) -> Tokenizer:
    """Load a tokenizer.json, and add the tokens that other files name.

    Args:
        data: The file's bytes.
        added: `TextFiles.added`: tokens with their `content` and flags, which get ids in this order unless the
            vocabulary has them. A token that the tokenizer has added already is left as it is, unless the entry is
            `configured` (then it gets the entry's flags). One with an `id` is left out if that id is taken.

    Raises:
        Exception: what the library raises.
        BaseException: a panic of the library.
    """
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_buffer(data.removeprefix(_BOM))
    present = tokenizer.get_added_tokens_decoder()
    exact, contents = set(map(repr, present.values())), {token.content for token in present.values()}
    fresh = []
    for entry in added:
        token = AddedToken(entry["content"], **{flag: entry[flag] for flag in _FLAGS if flag in entry})
        known = repr(token) in exact if "configured" in entry else token.content in contents
        if not known and entry.get("id") not in present:
            fresh.append(token)
            contents.add(token.content)
    if fresh:
        tokenizer.add_tokens(fresh)
    return tokenizer
