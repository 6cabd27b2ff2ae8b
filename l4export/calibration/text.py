"""Text to calibrate on: plain text, which the checkpoint's tokenizer cuts up, token ids, or conversations."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from l4export.errors import InputError, StorageError
from l4export.model.config import ModelConfig
from l4export.model.vision_config import VisionConfig
from l4export.reference.window import Window
from l4export.runtimes.images.processor import ProcessedImages
from l4export.storage.opened_file import OpenedFile

if TYPE_CHECKING:
    from l4export.calibration.messages import Conversation
    from l4export.runtimes.text.codec import TextCodec

__all__ = [
    "DEFAULT_TEXT",
    "FEWEST_KV_TOKENS",
    "MOST_KV_TOKENS",
    "CalibrationText",
    "TextReader",
    "are_messages",
]

DEFAULT_TEXT = Path(__file__).parent / "default_text.txt"
"""Chapters of the King James Bible (1611), which is in the public domain."""

FEWEST_KV_TOKENS = 64
"""With fewer, most channels of a KV cache have not shown what they can reach."""

MOST_KV_TOKENS = 4096
"""What follows them is not read for a KV cache: more text costs time and moves no scale by much."""

_LONGEST = 2048
"""Tokens of one sequence that weights are calibrated on; longer documents are cut."""

_LONGEST_CONVERSATION = 8192
"""Tokens of a conversation, which is not cut: an image takes 2467 at most."""

_AUTO_LONGEST, _AUTO_WINDOWS = 512, 4
"""Damage is measured on so many tokens at a time, and so many times: for every choice of every group of weights."""

_FEWEST = 128
"""Tokens below which second moments say nothing, and neither does a mean."""

_RANDOM = "random token ids, seed 0"
_MOST_BYTES = 64 << 20
_MESSAGES = ".jsonl"
_TOKEN_IDS = re.compile(r"[\d\s,\[\]]*", re.ASCII)


@dataclass(frozen=True)
class CalibrationText:
    """Sequences of token ids, and the name of the file or directory that they are from.

    `conversations` are what the sequences were made of, one each, if they were messages.
    """

    name: str
    sequences: tuple[tuple[int, ...], ...]
    conversations: tuple[Conversation, ...] = ()

    @property
    def tokens(self) -> int:
        """How many there are in all."""
        return sum(map(len, self.sequences))

    def to_dict(self) -> dict[str, Any]:
        """For manifests: the digest of what was calibrated on, and the number of tokens.

        The digest is the sha256 of the ids as JSON, or where images are shown of ids and digests of images.
        """
        shown = [conversation.digests for conversation in self.conversations]
        told = json.dumps([self.sequences, shown] if self.shows_images else self.sequences)
        return {"sha256": hashlib.sha256(told.encode()).hexdigest(), "tokens": self.tokens}

    def images(self, index: int) -> ProcessedImages | None:
        """The images of one sequence, made anew; None where it shows none. Raises as `Conversation.images`."""
        return self.conversations[index].images() if self.conversations else None

    @property
    def shows_images(self) -> bool:
        """Whether some conversation has an image."""
        return any(conversation.pictures for conversation in self.conversations)

    @property
    def windows(self) -> list[Window]:
        """The sequences in which tokens are predicted, for a comparison of models.

        In a text all tokens but the first are predicted. In a conversation it is those that an assistant says: neither
        what others say nor tokens of images count, but all of them are read.
        """
        if self.conversations:
            return [Window(of.ids, np.flatnonzero(of.answers[1:]), of.images) for of in self.conversations]
        return [Window(ids, np.arange(len(ids) - 1)) for ids in self.sequences if len(ids) > 1]

    @property
    def predicted(self) -> int:
        """How many tokens are predicted in all windows."""
        return sum(len(window.positions) for window in self.windows)


class TextReader:
    """Reads texts with a checkpoint's tokenizer, each text once, and cuts them as their users want them.

    A text is a file, or all .txt and .json files of a directory in the order of their names. A file is one document:
    UTF-8 text, or token ids, which are whole numbers with spaces, line ends, commas or brackets between them. A .json
    file may hold several documents, as a list of lists of ids.

    A .jsonl file holds conversations, each a line with a JSON list of messages, whose images are in files of its
    directory or below, or within the messages. A conversation is never cut.

    Args:
        checkpoint: Directory whose tokenizer.json turns text into tokens.
        config: Its model: token ids must be below `vocab_size`, and a document's begin-of-text token is known by it.
        vision: What sees images; None: nothing does.
        blind: Why nothing does, and what to do, for messages.
    """

    def __init__(
        self, checkpoint: Path, config: ModelConfig, vision: VisionConfig | None = None, blind: str = ""
    ) -> None:
        self.checkpoint, self.config, self.vision = checkpoint, config, vision
        self.blind = blind or f"{checkpoint} has no vision tower; leave it out"
        self._documents: dict[Path, list[Sequence[int]]] = {}
        self._conversations: dict[Path, list[Conversation]] = {}

    def for_weights(self, path: Path) -> CalibrationText:
        """What weights are calibrated on: windows of at most 2048 tokens, conversations of at most 8192; raises as
        `windows`."""
        if are_messages(path):
            return self._messages("--calibrate", path, _LONGEST_CONVERSATION, answered=False)
        return self.windows("--calibrate", path, _LONGEST)

    def for_damage(self, path: Path | None) -> CalibrationText:
        """What `--quant auto` measures damage on: the first 2048 tokens or so, in windows of 512.

        `path` None means the text that comes with l4export; without a tokenizer, seeded random token ids. Of
        conversations it is the first ones until they have 2048 tokens. Raises as `windows`.
        """
        if path is not None and are_messages(path):
            text = self._messages("--calibrate", path, _LONGEST_CONVERSATION, answered=True)
            before = np.cumsum([0, *map(len, text.sequences)])[:-1]
            kept = int(np.count_nonzero(before < _AUTO_WINDOWS * _AUTO_LONGEST))
            return CalibrationText(text.name, text.sequences[:kept], text.conversations[:kept])
        if path is None and self._codec is None:
            return self._random((_AUTO_WINDOWS, _AUTO_LONGEST))
        text = self.windows("--calibrate", path or DEFAULT_TEXT, _AUTO_LONGEST)
        return CalibrationText(text.name, tuple(ids for ids in text.sequences if len(ids) > 1)[:_AUTO_WINDOWS])

    def for_scales(self, path: Path | None, option: str = "--kv-calibrate") -> CalibrationText:
        """What the scales of a KV cache, or of activations, are measured on: the first 4096 tokens, as one sequence.

        `path` None means as in `for_damage`; `option` is what the command line calls it. Raises as `windows`.
        """
        if path is None and self._codec is None:
            return self._random((1, MOST_KV_TOKENS))
        where = f"{option} {path}" if path else "the default calibration text"
        if path is not None and are_messages(path):
            raise InputError(f"{where}: scales are measured on text; give text, or token ids")
        documents = self._read(path or DEFAULT_TEXT, where)
        ids = tuple(token for document in documents for token in document)[:MOST_KV_TOKENS]
        return self._checked(CalibrationText((path or DEFAULT_TEXT).name, (ids,)), FEWEST_KV_TOKENS, where)

    def windows(self, option: str, path: Path, longest: int) -> CalibrationText:
        """A text in windows of `longest` tokens; if a begin-of-text token stands before a document, every window of it
        has one. Of a .jsonl file the conversations, which have no more tokens than that, and each a token that an
        assistant says.

        Raises:
            InputError: no such file, nothing in it, too large, not UTF-8 or JSON, ids out of range, too few tokens,
                text without a tokenizer; conversations that are too long, that no assistant speaks in, or that
                `MessageReader` refuses.
            EnvironmentLacks: text, and the package tokenizers is not installed.
            StorageError: a file cannot be read.
        """
        if are_messages(path):
            return self._messages(option, path, longest, answered=True)
        where = f"{option} {path}"
        documents = self._read(path, where)
        pieces = tuple(piece for ids in documents for piece in _pieces(ids, self.config.bos_token_id, longest))
        return self._checked(CalibrationText(path.name, pieces), _FEWEST, where)

    @cached_property
    def _codec(self) -> TextCodec | None:
        from l4export.runtimes.text.codec import TextCodec

        return TextCodec.open(self.checkpoint)

    def _messages(self, option: str, path: Path, longest: int, answered: bool) -> CalibrationText:
        """Conversations of at most `longest` tokens, where `answered` with something to predict in each."""
        where = f"{option} {path}"
        if path not in self._conversations:
            self._conversations[path] = list(self._read_messages(path, where))
        conversations = self._conversations[path]
        for of in conversations:
            if len(of.ids) > longest:
                raise InputError(f"{of.where}: has {len(of.ids)} tokens, and at most {longest} are read; shorten it")
            if answered and not of.answers[1:].any():
                raise InputError(f"{of.where}: no assistant says anything, so there is no text to score; add an answer")
        text = CalibrationText(path.name, tuple(of.ids for of in conversations), tuple(conversations))
        if answered and text.predicted < _FEWEST:
            raise InputError(f"{where}: assistants say {text.predicted} tokens; give at least {_FEWEST}")
        return self._checked(text, _FEWEST, where)

    def _read_messages(self, path: Path, where: str) -> Iterator[Conversation]:
        from l4export.calibration.messages import MessageReader

        lines = _read(path, where).split("\n")
        if self._codec is None:
            raise InputError(f"{where}: {self.checkpoint} has no tokenizer.json to read messages with; add it")
        reader = MessageReader(self.checkpoint, self._codec, self.vision, self.blind)
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield reader.read(line, path.parent, f"{where}: line {number}")

    def _read(self, path: Path, where: str) -> list[Sequence[int]]:
        """Token ids of every document of a file or directory."""
        if path not in self._documents:
            self._documents[path] = [ids for file, name in _files(path, where) for ids in self._read_file(file, name)]
        return self._documents[path]

    def _read_file(self, file: Path, where: str) -> Iterator[Sequence[int]]:
        text = _read(file, where)
        if file.suffix == ".json":
            yield from _listed_ids(text, where)
        elif _TOKEN_IDS.fullmatch(text):
            yield [int(number) for number in re.findall(r"\d{1,18}", text)]
        elif self._codec is None:
            raise InputError(f"{where}: {self.checkpoint} has no tokenizer.json to read text with; give token ids")
        else:
            yield self._codec.encode(text)

    def _random(self, shape: tuple[int, int]) -> CalibrationText:
        ids = np.random.default_rng(0).integers(0, self.config.vocab_size, shape).tolist()
        return CalibrationText(_RANDOM, tuple(map(tuple, ids)))

    def _checked(self, text: CalibrationText, fewest: int, where: str) -> CalibrationText:
        vocab_size = self.config.vocab_size
        for token in (token for sequence in text.sequences for token in sequence):
            if not 0 <= token < vocab_size:
                raise InputError(
                    f"{where}: token id {token} is outside the vocabulary (0 to {vocab_size - 1}); "
                    "use the checkpoint's own tokenizer"
                )
        if text.tokens < fewest:
            raise InputError(f"{where}: {text.tokens} tokens are too few; give at least {fewest}")
        return text


def are_messages(path: Path) -> bool:
    """Whether a text is a file of conversations."""
    return path.suffix == _MESSAGES


def _files(path: Path, where: str) -> list[tuple[Path, str]]:
    """The files of a text, and what errors call each."""
    if not path.is_dir():
        return [(path, where)]
    files = sorted(file for file in path.iterdir() if file.suffix in (".txt", ".json"))
    if not files:
        raise InputError(f"{where}: holds no .txt or .json file; give a text, or token ids")
    return [(file, f"{where}: {file.name}") for file in files]


def _read(file: Path, where: str) -> str:
    if not file.exists():
        raise InputError(f"{where}: no such file; give a text, or token ids")
    if not file.is_file():
        raise InputError(f"{where}: not a regular file; give a text, or token ids")
    opened = OpenedFile(file)
    if opened.size > _MOST_BYTES:
        raise InputError(f"{where}: larger than {_MOST_BYTES >> 20} MiB; a few hundred KB of text are enough")
    try:
        return io.TextIOWrapper(io.BytesIO(opened.read()), encoding="utf-8").read()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {error.start} is not UTF-8; give plain text or token ids") from None
    except OSError as error:
        raise StorageError(f"{where}: {error.strerror}; give a readable file") from error


def _listed_ids(text: str, where: str) -> list[list[int]]:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({type(error).__name__}); write a list of token ids") from None
    documents = raw if isinstance(raw, list) and raw and isinstance(raw[0], list) else [raw]
    for ids in documents:
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise InputError(f"{where}: must hold token ids, as a list or as a list of lists")
    return documents


def _pieces(ids: Sequence[int], begin: int | None, longest: int) -> list[tuple[int, ...]]:
    """A document in sequences of at most `longest` ids, each with the token that it begins with."""
    first = [ids[0]] if ids and ids[0] == begin else []
    rest = ids[len(first) :]
    step = longest - len(first)
    return [(*first, *rest[at : at + step]) for at in range(0, len(rest), step)]
