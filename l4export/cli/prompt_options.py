"""The prompt of `l4export run`: from text, token ids or messages, with images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l4export.errors import InputError

if TYPE_CHECKING:
    from l4export.runtimes.text.codec import TextCodec

__all__ = ["Prompt"]

_PLACEHOLDER = "<|image|>"
_MESSAGES_BYTES = 64 << 20


@dataclass(frozen=True)
class Prompt:
    """What the options say; one of `text`, `token_ids` and `messages` is given.

    Attributes:
        text: Of --prompt.
        token_ids: Of --token-ids.
        messages: The file of --messages.
        images: Of --image, in their order.
        raw: Whether the chat template is left out.
        special_tokens_as_text: Whether special tokens that are spelled out stay text.
    """

    text: str | None
    token_ids: str | None
    messages: Path | None
    images: Sequence[Path]
    raw: bool
    special_tokens_as_text: bool

    def check(self) -> None:
        """Raise InputError where options contradict each other."""
        if [self.text, self.token_ids, self.messages].count(None) != 2:
            raise InputError("give one of --prompt TEXT, --token-ids 1,2,3 and --messages FILE")
        if self.images and self.text is None:
            raise InputError("--image: goes with --prompt; messages name their images themselves")
        if self.images and self.raw and self.special_tokens_as_text:
            raise InputError("--image: with --raw and --special-tokens-as-text nothing says where; leave one out")
        if self.messages is not None and self.raw:
            raise InputError("--raw: messages need the chat template; give --prompt")

    def encoded(self, codec: TextCodec | None, engine: Path) -> tuple[list[int], list[Any]]:
        """Token ids with a placeholder for each image, and the images.

        Raises:
            InputError: an engine without a tokenizer, ids that are none, or what the codec refuses.
        """
        if self.token_ids is not None:
            return _parse_ids(self.token_ids), []
        if codec is None:
            raise InputError(
                f"{engine}: has no tokenizer.json; give --token-ids, or put one into the checkpoint, as transformers' "
                "AutoTokenizer writes with save_pretrained, and build again"
            )
        as_text = self.special_tokens_as_text
        if self.messages is not None:
            return codec.encode_messages(_read_messages(self.messages), special_tokens_as_text=as_text)
        prompt, images = str(self.text), [str(path) for path in self.images]
        places = 0 if as_text else prompt.count(_PLACEHOLDER)
        if images and places and places != len(images):
            raise InputError(
                f"--prompt: has {places} placeholders {_PLACEHOLDER} for {len(images)} images; give --image for each"
            )
        if self.raw or not codec.has_chat_template:
            marks = "" if places else _PLACEHOLDER * len(images)
            return codec.encode(marks + prompt, special_tokens_as_text=as_text), images
        if not codec.writes_user_text():
            raise InputError("chat template: it does not write what a user says; give --raw")
        if places or not images:
            message = {"role": "user", "content": prompt}
            return codec.encode_chat([message], special_tokens_as_text=as_text), images
        parts = [*({"type": "image", "path": path} for path in images), {"type": "text", "text": prompt}]
        return codec.encode_messages([{"role": "user", "content": parts}], special_tokens_as_text=as_text)


def _parse_ids(text: str) -> list[int]:
    if not re.fullmatch(r"\s*-?[0-9]+\s*(,\s*-?[0-9]+\s*)*", text):
        raise InputError(f"--token-ids {text[:60]!r}: write whole numbers with commas between them, as in 1,2,3")
    return [int(item) for item in text.split(",")]


def _read_messages(path: Path) -> list[Any]:
    """A list of messages of a JSON file; paths of images in it are taken from its directory."""
    from l4export.runtimes.text.message_file import parse_messages
    from l4export.storage.regular_files import read_small

    if not path.is_file():
        raise InputError(f"{path}: no such file; give one with a JSON list of messages")
    return parse_messages(read_small(path, _MESSAGES_BYTES, "give a shorter one"), path.parent, str(path))
