"""What every runtime's engine can do: sessions on the loaded decoder, and generation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from l4export.engine.file_checks import check_files
from l4export.engine.manifest import Manifest
from l4export.errors import InputError
from l4export.runtimes.arguments import a_path, a_whole_number, is_sequence, shown
from l4export.runtimes.cache.kv_cache import KVCache
from l4export.runtimes.generation import Steps, continuations
from l4export.runtimes.images.image_features import ImageFeatures
from l4export.runtimes.images.prepared_prompt import place_images
from l4export.runtimes.images.processor import ProcessedImages
from l4export.runtimes.new_tokens import Images
from l4export.runtimes.sampling import Sampler
from l4export.runtimes.saved_session import read_session
from l4export.runtimes.session import Session
from l4export.runtimes.text.codec import TextCodec
from l4export.runtimes.text.message_images import Fetch

__all__ = ["Engine"]


class Engine(ABC):
    """A decoder, loaded once and shared by any number of sessions and threads. Made by `l4export.runtimes.load`.

    Attributes:
        directory: The engine's.
        manifest: What it says of itself.
        config: The model's.
        features: The vision tower, with the features that are kept; None where this runtime sees no images.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self.config = manifest.model
        check_files(directory, manifest)
        self.features: ImageFeatures | None = None

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

    def forget_images(self) -> None:
        """Free what is kept of images. Sessions go on; an image that is shown again is computed again."""
        if self.features:
            self.features.forget()

    @cached_property
    def text(self) -> TextCodec | None:
        """Tokenizer and chat template; None when the checkpoint had no tokenizer.json."""
        return TextCodec.open(self.directory)

    def prepare(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_tiles: int | None = None,
        special_tokens_as_text: bool = False,
        fetch: Fetch | None = None,
        **variables: Any,
    ) -> tuple[list[int], ProcessedImages | None]:
        """Make of messages what `generate` and `Session.append` take: token ids, and images if there are any.

        Args:
            messages: As for `TextCodec.encode_messages`: an image is a part {"type": "image"} with `path`, `bytes`,
                `base64`, `image` or, where there is `fetch`, `url`.
            max_tiles: The most tiles into which an image is cut; None: as the checkpoint says.
            special_tokens_as_text: Whether special tokens that messages spell out stay text.
            fetch: Gets what a URL leads to.
            variables: What else `TextCodec.encode_messages` and the chat template take.

        Raises:
            InputError: no tokenizer or chat template, messages that they refuse, images for an engine that sees none,
                or what is no image.
            EnvironmentLacks: a package is missing.
            StorageError: a file cannot be read.
        """
        if self.text is None:
            raise InputError(f"{self.directory}: has no tokenizer.json, which messages need")
        options: dict[str, Any] = {"special_tokens_as_text": special_tokens_as_text, "fetch": fetch, **variables}
        ids, images = self.text.encode_messages(messages, **options)
        return place_images(self.directory, self.manifest.vision, self.text, ids, images, max_tiles)

    def session(self, batch: int = 1, capacity: int | None = None, start: int | Sequence[int] = 0) -> Session:
        """A fresh session of `batch` rows that can hold up to `capacity` tokens each (default: `max_context`).

        `start` is the position of the first token, for all rows or for each: the tokens before it are in no cache and
        no token sees them, but chunks, temperature and the limit of `max_context` count from position 0.

        Raises:
            InputError: a batch below 1, a capacity outside 1 .. `max_context`, a start outside 0 .. `max_context` - 1,
                or buffers that do not fit into memory.
        """
        return Session(self.new_cache, self.manifest, batch, capacity, start, self.features)

    def load_session(self, path: str | Path) -> Session:
        """Open the session that `Session.save` wrote, to continue it.

        Raises:
            InputError: no such file, one that is damaged, or one that another engine has saved.
            StorageError: reading failed.
        """
        state, tokens = read_session(a_path(path, "path"), self.manifest)
        return Session.restored(self.new_cache, self.manifest, state, tokens, self.features)

    def generate(
        self,
        token_ids: Sequence[int],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop_token_ids: Iterable[int] | None = None,
        images: ProcessedImages | None = None,
    ) -> Iterator[int]:
        """Continue one prompt; yields each new token as it is chosen, a stop token last.

        `images` are those that the prompt shows; `prepare` makes both of messages.

        Everything is checked when this is called; tokens are computed as they are asked for, by one caller at a time.
        Stops after `max_new_tokens`, at a token of `stop_token_ids` (default: the model's end-of-sequence tokens), or
        when `max_context` is reached. Sampling is that of `l4export.runtimes.sampling.Sampler`.

        Raises:
            InputError: at the call, an empty prompt, one longer than `max_context`, ids out of range, bad settings,
                other images than the prompt has tokens for; while tokens are asked for, another thread that asks too,
                or an engine that refuses a call.
        """
        if not is_sequence(token_ids):
            raise InputError(f"token ids must be a sequence of integers, not {type(token_ids).__name__}")
        steps = self._continuations([token_ids], max_new_tokens, temperature, top_p, seed, stop_token_ids, images)
        return Steps(token for (token,) in steps if token is not None)

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop_token_ids: Iterable[int] | None = None,
        images: Sequence[ProcessedImages | None] | None = None,
    ) -> Iterator[list[int | None]]:
        """Continue several prompts of any lengths; yields one list a step, None where a row has ended.

        `images` has those of each prompt, or None for a prompt without.

        Rows share the decoder calls, which is what makes a batch faster than its prompts one by one. A row's logits are
        those of `generate` up to the engine's rounding, because kernels add up in another order when rows are fed
        together. Where nothing is rounded below float32 that is a millionth of the largest logit. Where activations are
        rounded to int8 (int4 and int8 weights of `ort-cpu` with `accuracy_level` 4, int8 experts with any), or float16
        or a quantised KV cache is used, such a rounding can go the other way, which changes logits by up to a few per
        cent of the largest. So a row says what `generate` says unless two tokens are nearly equally likely.
        docs/guide/threads.md has what was measured; call `generate` for each prompt where that matters.

        Sampling, row r draws from a random stream of its own, so what it says does not depend on what the other rows
        draw, and row 0 draws what `generate` draws.

        Raises as `generate`, at the call.
        """
        return Steps(self._continuations(prompts, max_new_tokens, temperature, top_p, seed, stop_token_ids, images))

    def _continuations(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int | None,
        stop_token_ids: Iterable[int] | None,
        images: Images,
    ) -> Iterator[list[int | None]]:
        """Check everything; compute nothing yet."""
        count = a_whole_number(max_new_tokens, "max_new_tokens", 1)
        stops, sampler = self._stops(stop_token_ids), Sampler(temperature, top_p, seed)
        if not is_sequence(prompts) or not all(map(is_sequence, prompts)):
            raise InputError("prompts must be a sequence that has a sequence of token ids for each row")
        if not all(map(len, prompts)):
            raise InputError("a prompt is empty: give at least one token")
        limit, longest = self.manifest.max_context, max(map(len, prompts), default=0)
        session = self.session(len(prompts), min(limit, longest + count) if longest <= limit else None)
        return continuations(session, session.checked(list(prompts), images), sampler, stops, count)

    def _stops(self, token_ids: Iterable[int] | None) -> frozenset[int]:
        if token_ids is None:
            return frozenset(self.config.eos_token_ids)
        if isinstance(token_ids, str | bytes) or not isinstance(token_ids, Iterable):
            raise InputError(f"stop_token_ids is {shown(token_ids)}: give a collection of token ids")
        most = self.config.vocab_size - 1
        return frozenset(a_whole_number(token, "a token of stop_token_ids", 0, most) for token in token_ids)
