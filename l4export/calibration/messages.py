"""Conversations to measure on: chat messages with images, as the tokens that a chat template makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.errors import InputError
from l4export.model.vision_config import VisionConfig
from l4export.runtimes.images.prepared_prompt import place_images
from l4export.runtimes.images.processor import ImageProcessor, ProcessedImages
from l4export.runtimes.text.codec import TextCodec
from l4export.runtimes.text.message_file import image_files, parse_messages
from l4export.runtimes.text.message_images import take_images

__all__ = ["Conversation", "MessageReader"]


@dataclass(frozen=True, eq=False)
class Conversation:
    """One conversation as T tokens, those of its images among them.

    Attributes:
        where: What errors call it.
        ids: The tokens.
        answers: bool [T]: which tokens are text that an assistant says, the token that ends it among them.
        digests: Of its images' tiles.
        pictures: Its images as the messages give them.
        directory: Has the settings of the image processor.
    """

    where: str
    ids: tuple[int, ...]
    answers: NDArray[np.bool_]
    digests: tuple[str, ...]
    pictures: tuple[Any, ...]
    directory: Path

    def images(self) -> ProcessedImages | None:
        """Its images, made anew; None where it shows none.

        Raises:
            InputError: a file is no longer what it was.
            StorageError: a file cannot be read.
        """
        if not self.pictures:
            return None
        images = ImageProcessor.open(self.directory)(self.pictures)
        if images.digests != self.digests:
            raise InputError(f"{self.where}: an image has changed since it was read; start again")
        return images


class MessageReader:
    """Reads conversations with the tokenizer, the chat template and the image processor of a checkpoint or an engine.

    Args:
        directory: The checkpoint's or the engine's.
        codec: Its tokenizer and chat template.
        vision: Its vision tower; None where it has none.
        blind: Why it has none, and what to do.
    """

    def __init__(self, directory: Path, codec: TextCodec, vision: VisionConfig | None, blind: str) -> None:
        self.directory, self.codec, self.vision, self.blind = directory, codec, vision, blind

    def read(self, line: str, folder: Path, where: str) -> Conversation:
        """The conversation that a JSON list of messages is. Images in files must lie within `folder`.

        Raises:
            InputError: no such list, messages that the chat template refuses, an image that is none, lies elsewhere or
                is seen by nothing.
            EnvironmentLacks: a package is missing.
            StorageError: an image cannot be read.
        """
        messages = parse_messages(line.encode(), folder, where)
        for path in image_files(messages):
            if not path.resolve().is_relative_to(folder.resolve()):
                raise InputError(f"{where}: the image {str(path)[:200]!r} lies outside {folder}; copy it there")
        try:
            return self._conversation(messages, where)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    def _conversation(self, messages: list[Any], where: str) -> Conversation:
        plain, pictures = take_images(messages)
        if pictures and self.vision is None:
            raise InputError(f"shows images, and {self.blind}")
        written = self.codec.encode_chat(plain, add_generation_prompt=False)
        said = self._said_by_assistants(plain, written)
        ids, images = place_images(self.directory, self.vision, self.codec, written, pictures)
        if images is None:
            return Conversation(where, tuple(ids), said, (), (), self.directory)
        sizes = np.ones(len(written), np.int64)
        placeholders = np.asarray(written) == self.codec.tokenizer.token_to_id("<|image|>")
        sizes[placeholders] = images.token_counts
        answers = np.repeat(said & ~placeholders, sizes)
        return Conversation(where, tuple(ids), answers, images.digests, tuple(pictures), self.directory)

    def _said_by_assistants(self, messages: Sequence[Any], written: Sequence[int]) -> NDArray[np.bool_]:
        """Which of the ids `written` are assistants' messages: what follows the prompt for one, up to its end.

        What begins an answer is thus the prompt's, and what ends it the answer's. Two texts are compared by their ids,
        of which the last may be another one where the next text begins.

        Raises:
            InputError: the template writes earlier messages in another way if others follow.
        """
        said = np.zeros(len(written), bool)
        for at, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            start = 0
            if before := messages[:at]:
                earlier = self.codec.encode_chat(before, add_generation_prompt=False)
                if _common(earlier, written) < len(earlier) - 1:
                    raise InputError(
                        f"chat template: it writes the messages before message {at + 1} in another way if it follows, "
                        "so that nothing tells which tokens are the assistant's; end the conversation before it"
                    )
                start = _common(self.codec.encode_chat(before, add_generation_prompt=True), written)
            stop = _common(self.codec.encode_chat(messages[: at + 1], add_generation_prompt=False), written)
            said[start:stop] = True
        return said


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two sequences have in common at the beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))
