"""Text to token ids and back: a checkpoint's own tokenizer and chat template, neither of them trusted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l4export.errors import InputError
from l4export.runtimes.text.chat_template import ChatTemplates, plain_value
from l4export.runtimes.text.message_images import Fetch, has_images, take_images
from l4export.runtimes.text.spelled_tokens import SpelledTokens
from l4export.runtimes.text.stream import TextStream
from l4export.runtimes.text.text_files import read_text_files
from l4export.runtimes.text.tokenizer_file import TOKENIZER, library_errors, open_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TextCodec"]

TEXT_CHARACTERS = 64 << 20
"""Longest text that is encoded at once; ten times what Llama 4 Scout's context holds of English, or more."""

MOST_IDS = 64 << 20
"""The most token ids that are decoded at once."""


class TextCodec:
    """The tokenizer of one directory, with its chat templates.

    Args:
        tokenizer: The tokenizer; it is kept from cutting and padding texts.
        chat_templates: Sources of its chat templates by name; "default" is used where no other is named.
        special_tokens: What they see as `bos_token`, `eos_token` and so on.
        control_tokens: Ordinary added tokens that `special_tokens_as_text` makes text too; None: those that a template
            writes.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_templates: Mapping[str, str] | None = None,
        special_tokens: Mapping[str, str] | None = None,
        control_tokens: Collection[str] | None = None,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.special_tokens = dict(special_tokens or {})
        self.chat_templates = dict(chat_templates or {})
        self._templates = ChatTemplates(self.chat_templates, self.special_tokens)
        added = tokenizer.get_added_tokens_decoder().values()
        self._skippable = {token.content for token in added if token.special}
        if control_tokens is None:
            sources = "\0".join(self.chat_templates.values())
            control_tokens = [token.content for token in added if token.content.strip() and token.content in sources]
        self._control_tokens = control_tokens

    @classmethod
    def open(cls, directory: str | Path) -> TextCodec | None:
        """Open the tokenizer of a checkpoint or an engine; None when the directory has no tokenizer.json.

        Chat templates and special tokens are found where transformers finds them (`text_files`).

        Raises:
            InputError: files that are broken or too large, or a tokenizer that does not work within its limits of time
                and memory.
            StorageError: files that cannot be read.
            EnvironmentLacks: the package tokenizers is missing.
        """
        directory = Path(directory)
        path = directory / TOKENIZER
        if not path.exists():
            return None
        files = read_text_files(directory)
        tokenizer = open_tokenizer(path, files.added)
        tokenizer.encode_special_tokens = files.special_as_text
        padding = {"pad_token": str(tokenizer.padding["pad_token"])} if tokenizer.padding else {}
        return cls(tokenizer, files.chat_templates, padding | dict(files.special_tokens), files.control_tokens)

    def encode(self, text: str, add_special_tokens: bool = True, special_tokens_as_text: bool = False) -> list[int]:
        """Return the ids of a text, untruncated.

        Args:
            text: Any text.
            add_special_tokens: Whether the tokenizer adds what it adds to a text (Llama 4: begin of text).
            special_tokens_as_text: Whether special tokens that are spelled out in the text stay text. They become those
                tokens otherwise.

        Raises:
            InputError: text that has no UTF-8 form (lone surrogates), is too long, or makes the library fail.
        """
        self._check_text(text)
        with _encoding():
            if special_tokens_as_text:
                return self._spelled.encode(text, add_special_tokens)
            return list(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of some ids; ids without a token give none, bytes that are not UTF-8 give U+FFFD.

        Raises:
            InputError: an id outside 0 ... 2^32 - 1, too many ids, or ids that make the library fail.
        """
        ids = [int(token) for token in ids]
        if len(ids) > MOST_IDS:
            raise InputError(f"token ids: {len(ids)}, at most {MOST_IDS} are decoded: give them in pieces")
        if any(not 0 <= token < 1 << 32 for token in ids):
            raise InputError("token ids: one is negative or above 2^32 - 1: give ids of the vocabulary")
        with library_errors("token ids: cannot be decoded", "copy the tokenizer from the checkpoint again"):
            return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def stream(self, skip_special_tokens: bool = True) -> TextStream:
        """Start decoding one token at a time."""
        return TextStream(self, skip_special_tokens)

    def has_text(self, token: int, skip_special_tokens: bool = True) -> bool:
        """Tell whether a token contributes to decoded text: it exists and is not a special one that is skipped.

        Raises:
            InputError: an id outside 0 ... 2^32 - 1.
        """
        try:
            content = self.tokenizer.id_to_token(int(token))
        except OverflowError:
            raise InputError(f"token id {token} is negative or above 2^32 - 1: give ids of the vocabulary") from None
        return bool(content) and not (skip_special_tokens and content in self._skippable)

    @property
    def has_chat_template(self) -> bool:
        """Whether `render_chat` and `encode_chat` can be used."""
        return bool(self.chat_templates)

    def writes_user_text(self) -> bool:
        """Tell whether the default chat template writes what a user says, in any form.

        Raises as `render_chat`.
        """
        return self._templates.content_form(self._templates.choose(None, None)) != "neither"

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """Return the prompt that a chat template makes of messages.

        Args:
            messages: Dicts with "role" and "content". A content may be text or a list of parts; it is given to the
                template in the form that the template knows, and parts of text are joined with line ends where it knows
                text alone.
            add_generation_prompt: Whether the prompt ends with what begins an answer.
            chat_template: The name of a template; None: "tool_use" if there is one and `tools` are given, or else
                "default".
            variables: What else the template sees (`tools`, `documents`, `date_string`, ...); they prevail over the
                special tokens.

        Raises:
            InputError: there is no such template, something goes wrong inside it, it takes too long or too much memory,
                or it leaves out parts that are not text.
            EnvironmentLacks: the package jinja2 is missing.
        """
        source = self._templates.choose(chat_template, variables.get("tools"))
        return self._templates.render(source, messages, _defaults(add_generation_prompt, variables))

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        special_tokens_as_text: bool = False,
        **variables: Any,
    ) -> list[int]:
        """Return the ids of `render_chat`, without added special tokens: the template has written them all.

        With `special_tokens_as_text`, special tokens that messages and variables spell out stay text, so that only
        those which the template writes are tokens. Raises as `render_chat` and `encode`, and where parts hold images.
        """
        if has_images(messages):
            raise InputError("messages: hold images, which ids alone would lose; use encode_messages")
        if not special_tokens_as_text:
            prompt = self.render_chat(messages, add_generation_prompt, chat_template, **variables)
            return self.encode(prompt, add_special_tokens=False)
        with _encoding():
            spelled = self._spelled
        marked = [spelled.mark(plain_value(message, "messages")) for message in messages]
        values = {name: spelled.mark(plain_value(value, name)) for name, value in variables.items()}
        prompt = self.render_chat(marked, add_generation_prompt, chat_template, **values)
        self._check_text(prompt)
        with _encoding():
            return spelled.encode_marked(prompt)

    def encode_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        special_tokens_as_text: bool = False,
        fetch: Fetch | None = None,
        **variables: Any,
    ) -> tuple[list[int], list[Any]]:
        """Return the ids of messages with images, and the images in their order.

        An image is a part {"type": "image"} with `path`, `bytes`, `base64`, `image` or, where there is `fetch`, `url`.
        In the ids it is the token that the template writes for it, `<|image|>`: `expand_images` replaces these by the
        tokens of the processed images, and refuses other numbers of them, such as a text's own without an image.

        Raises as `encode_chat`, and for parts without an image, or with an image that is given in no known way.
        """
        messages, images = take_images(messages, fetch)
        return self.encode_chat(
            messages, add_generation_prompt, chat_template, special_tokens_as_text, **variables
        ), images

    @cached_property
    def _spelled(self) -> SpelledTokens:
        return SpelledTokens(self.tokenizer, self._control_tokens)

    def _check_text(self, text: str) -> None:
        if len(text) > TEXT_CHARACTERS:
            raise InputError(f"text: {len(text)} characters, at most {TEXT_CHARACTERS} are encoded: give it in pieces")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text: character {error.start} is a lone surrogate: give valid Unicode") from None


def _encoding() -> AbstractContextManager[None]:
    return library_errors("text: cannot be encoded", "copy the tokenizer from the checkpoint again")


def _defaults(add_generation_prompt: bool, variables: Mapping[str, Any]) -> dict[str, Any]:
    return {"tools": None, "documents": None, **variables, "add_generation_prompt": add_generation_prompt}
