"""What every runtime's engine can do: sessions on the loaded decoder, and generation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from l4export.engine.manifest import Manifest
from l4export.errors import InputError
from l4export.runtimes.cache.kv_cache import KVCache
from l4export.runtimes.sampling import Sampler
from l4export.runtimes.saved_session import read_session
from l4export.runtimes.session import Session
from l4export.runtimes.text.codec import TextCodec
from l4export.storage.file_records import file_record

__all__ = ["Engine"]

_DIGEST_LIMIT = 64 << 20


class Engine(ABC):
    """A decoder that is loaded once and shared by any number of sessions. Made by `l4export.runtimes.load`."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self.config = manifest.model
        _check_files(directory, manifest)

    @property
    @abstractmethod
    def provider(self) -> str:
        """What executes the decoder, as a report should name it."""

    @property
    @abstractmethod
    def threads(self) -> int | None:
        """Threads of this machine's CPU that one call uses; None where a GPU computes."""

    @abstractmethod
    def new_cache(self, manifest: Manifest, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` tokens, and the calls on it."""

    @cached_property
    def text(self) -> TextCodec | None:
        """Tokenizer and chat template; None when the checkpoint had no tokenizer.json."""
        return TextCodec.open(self.directory)

    def session(self, batch: int = 1, capacity: int | None = None, start: int | Sequence[int] = 0) -> Session:
        """A fresh session of `batch` rows that can hold up to `capacity` tokens each (default: `max_context`).

        `start` is the position of the first token, of all rows or of each: the tokens before it are in no cache and
        nobody sees them, but chunks, temperature and the limit of `max_context` count from position 0.

        Raises:
            InputError: a batch below 1, a capacity outside 1 .. `max_context`, a start outside 0 .. `max_context` - 1,
                or buffers that do not fit into memory.
        """
        return Session(self.new_cache, self.manifest, batch, capacity, start)

    def load_session(self, path: str | Path) -> Session:
        """The session that `Session.save` wrote, to go on with.

        Raises:
            InputError: no such file, one that is damaged, or one that another engine has saved.
            StorageError: reading failed.
        """
        return Session.restored(self.new_cache, self.manifest, *read_session(Path(path), self.manifest))

    def generate(
        self,
        token_ids: Sequence[int],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop_token_ids: Iterable[int] | None = None,
    ) -> Iterator[int]:
        """Continue one prompt; yields each new token as it is chosen, a stop token last.

        Stops after `max_new_tokens`, at a token of `stop_token_ids` (default: the model's end-of-sequence tokens), or
        when `max_context` is reached. Sampling is that of `l4export.runtimes.sampling.Sampler`.

        Raises:
            InputError: an empty prompt, one longer than `max_context`, ids out of range, bad sampling settings.
        """
        for step in self.generate_batch([token_ids], max_new_tokens, temperature, top_p, seed, stop_token_ids):
            token = step[0]
            assert token is not None
            yield token

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop_token_ids: Iterable[int] | None = None,
    ) -> Iterator[list[int | None]]:
        """Continue several prompts of any lengths; yields one list a step, None where a row has ended.

        Greedy, every row yields what `generate` yields for its prompt alone. Sampling, row r draws from a random
        stream of its own, so what it says does not depend on the other rows, and row 0 says what `generate` says.

        Raises as `generate`.
        """
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}: give 1 or more")
        stops = frozenset(self.config.eos_token_ids if stop_token_ids is None else stop_token_ids)
        sampler = Sampler(temperature, top_p, seed)
        limit = self.manifest.max_context
        longest = max((len(prompt) for prompt in prompts), default=0)
        session = self.session(len(prompts), min(limit, max(longest + max_new_tokens, 1)) if longest <= limit else None)
        if any(len(prompt) == 0 for prompt in prompts):
            raise InputError("a prompt is empty: give at least one token")
        step: list[list[int]] = [list(prompt) for prompt in prompts]
        running = [True] * len(prompts)
        for count in range(max_new_tokens):
            logits = session.append(step, last_only=True)[:, 0]
            chosen = sampler(np.where(np.asarray(running)[:, None], logits, 0))
            tokens = [int(token) if on else None for token, on in zip(chosen, running, strict=True)]
            yield list(tokens)  # what the caller does to it changes nothing here
            for row, token in enumerate(tokens):
                full = session.lengths[row] >= session.capacity
                running[row] = token is not None and token not in stops and not full
            if not any(running) or count + 1 == max_new_tokens:
                return
            step = [[token] if on and token is not None else [] for token, on in zip(tokens, running, strict=True)]


def _check_files(directory: Path, manifest: Manifest) -> None:
    """Sizes of all files, digests of the small ones (the graph and the tokenizer among them)."""
    for name, record in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise InputError(f"{directory}: {name} is missing; build or copy the engine again")
        size = path.stat().st_size
        if size != record.bytes:
            raise InputError(f"{path}: {size} bytes instead of {record.bytes}; build or copy the engine again")
        if size <= _DIGEST_LIMIT and file_record(path).sha256 != record.sha256:
            raise InputError(f"{directory}: {name} has been changed; build or copy the engine again")
