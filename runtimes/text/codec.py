"""Text to token ids and back: a checkpoint's own tokenizer.json and chat template, neither of them trusted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l4export.errors import EnvironmentLacks, InputError, StorageError, one_line
from l4export.runtimes.text.chat_template import render_template

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TextCodec", "TextStream"]

TOKENIZER_BYTES = 256 << 20
"""Largest tokenizer.json that is read; Llama 4's has 28 MB."""

SMALL_FILE_BYTES = 16 << 20
"""Largest tokenizer_config.json or chat_template.jinja that is read."""

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Entries of tokenizer_config.json that chat templates see as variables, as with transformers."""

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextCodec:
    """The tokenizer of one directory, with its chat template (None when it has none).

    `chat_template` is the template's source; `special_tokens` its variables `bos_token`, `eos_token` and so on.
    """

    def __init__(
        self, tokenizer: Tokenizer, chat_template: str | None = None, special_tokens: Mapping[str, str] | None = None
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.special_tokens = dict(special_tokens or {})
        self._skippable = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}

    @classmethod
    def open(cls, directory: str | Path) -> TextCodec | None:
        """Open the tokenizer of a checkpoint or an engine; None when the directory has no tokenizer.json.

        tokenizer_config.json gives the special tokens and, where there is no chat_template.jinja, the chat template:
        a string, or a list of {name, template} of which "default" is taken.

        Raises `InputError` for files that are broken or too large, `StorageError` for unreadable ones and
        `EnvironmentLacks` without the package tokenizers.
        """
        directory = Path(directory)
        path = directory / "tokenizer.json"
        if not path.is_file():
            return None
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise EnvironmentLacks("the package tokenizers is not installed: pip install 'l4export[cpu]'") from None
        data = _read(path, TOKENIZER_BYTES)
        try:
            tokenizer = Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises bare ones
            raise InputError(f"{path}: not a tokenizer: {one_line(error)}; copy it from the checkpoint again") from None
        config = _read_config(directory / "tokenizer_config.json")
        tokens = {name: _content(config.get(name)) for name in SPECIAL_TOKENS}
        return cls(tokenizer, _find_template(directory, config), {name: text for name, text in tokens.items() if text})

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text, untruncated, by default with what the tokenizer adds (Llama 4: begin of text).

        Special tokens spelled out in the text become those tokens. Raises `InputError` for text that has no UTF-8
        form (lone surrogates).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text: character {error.start} is a lone surrogate: give valid Unicode") from None
        return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of some ids; ids without a token give none, bytes that are not UTF-8 give U+FFFD.

        Raises `InputError` for an id outside 0 ... 2^32 - 1.
        """
        try:
            return self.tokenizer.decode([int(token) for token in ids], skip_special_tokens=skip_special_tokens)
        except OverflowError:
            raise InputError("token ids: one is negative or above 2^32 - 1: give ids of the vocabulary") from None

    def stream(self, skip_special_tokens: bool = True) -> TextStream:
        """Start decoding one token at a time."""
        return TextStream(self, skip_special_tokens)

    def has_text(self, token: int, skip_special_tokens: bool = True) -> bool:
        """Tell whether a token contributes to decoded text: it exists and is not a special one that is skipped."""
        try:
            content = self.tokenizer.id_to_token(int(token))
        except OverflowError:
            raise InputError(f"token id {token} is negative or above 2^32 - 1: give ids of the vocabulary") from None
        return bool(content) and not (skip_special_tokens and content in self._skippable)

    @property
    def has_chat_template(self) -> bool:
        """Whether `render_chat` and `encode_chat` can be used."""
        return self.chat_template is not None

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Return the prompt that the chat template makes of messages: dicts with "role" and "content".

        `variables` (`tools`, `date_string`, ...) reach the template beside the special tokens, and prevail over them.
        Raises `InputError` when there is no template and for everything that goes wrong inside it, and
        `EnvironmentLacks` without the package jinja2.
        """
        if self.chat_template is None:
            raise InputError("chat template: there is none: give a plain prompt, or add a chat_template.jinja")
        given = {"tools": None, "documents": None, **self.special_tokens, **variables}
        given |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        return render_template(self.chat_template, given)

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Return the ids of `render_chat`, without added special tokens: the template has written them all."""
        prompt = self.render_chat(messages, add_generation_prompt, **variables)
        return self.encode(prompt, add_special_tokens=False)


class TextStream:
    """Decodes tokens as they come; the pieces of `push` and the `flush` after them make `decode` of all of the ids.

    A token may end within a character. A decoder shows the bytes of an unfinished character as one U+FFFD at the end,
    so that character, and no other, is held back. Only the last tokens are decoded again, so a push costs the same
    however long the text is: with one byte or more a token and at most three bytes of an unfinished character, four
    tokens of context would do.

    This holds for byte-level BPE, as all Llama 4 models have it. (A "byte fallback" decoder rewrites earlier
    characters when later bytes turn out to be invalid; no stream can follow that.)
    """

    CONTEXT = 8

    def __init__(self, codec: TextCodec, skip_special_tokens: bool = True) -> None:
        self._codec = codec
        self._skip = skip_special_tokens
        self._ids: list[int] = []
        self._sent = 0  # characters of decode(self._ids) that push has returned

    def push(self, token: int) -> str:
        """Add a token and return the text that is complete now; often a word, sometimes nothing."""
        if not self._codec.has_text(token, self._skip):
            return ""
        self._ids.append(int(token))
        text = self._decode()
        complete = max(self._sent, len(text) - text.endswith(UNFINISHED))
        piece, self._sent = text[self._sent : complete], complete
        if len(self._ids) >= 2 * self.CONTEXT:
            held = len(text) - complete
            del self._ids[: -self.CONTEXT]
            self._sent = len(self._decode()) - held
        return piece

    def flush(self) -> str:
        """Return what is held back, finished or not, and start anew."""
        rest = self._decode()[self._sent :]
        self._ids, self._sent = [], 0
        return rest

    def _decode(self) -> str:
        return self._codec.decode(self._ids, skip_special_tokens=self._skip)


def _find_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: chat_template.jinja, else tokenizer_config.json's (of a list "default", or its only one)."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return _decode_utf8(path, _read(path, SMALL_FILE_BYTES))
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = next(iter(named.values())) if len(named) == 1 else named.get("default")
    if found is not None and not isinstance(found, str):
        path = directory / "tokenizer_config.json"
        raise InputError(f"{path}: chat_template is neither text nor a list of name and template: correct or remove it")
    return found


def _read_config(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; an absent file is an empty one."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(_decode_utf8(path, _read(path, SMALL_FILE_BYTES)))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {one_line(error)}; copy it from the checkpoint again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: a JSON {type(config).__name__}, not an object; copy it from the checkpoint again")
    return config


def _read(path: Path, limit: int) -> bytes:
    """Read a whole file of at most `limit` bytes."""
    try:
        if (size := path.stat().st_size) > limit:
            raise InputError(f"{path}: {size} bytes, at most {limit} are read: is this the right file?")
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}; check its permissions") from None


def _decode_utf8(path: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; copy it from the checkpoint again") from None


def _content(token: Any) -> str | None:
    """The text of a special token, which tokenizer_config.json gives plainly or as an object with "content"."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
