"""What every runtime's engine can do: sessions on the loaded decoder, and generation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l4export.engine.file_checks import check_files
from l4export.engine.manifest import Manifest
from l4export.errors import InputError
from l4export.runtimes.arguments import a_path, is_sequence, shown
from l4export.runtimes.cache.kv_cache import KVCache
from l4export.runtimes.closing import Closing
from l4export.runtimes.generated_row import GeneratedRow
from l4export.runtimes.generation import BatchGeneration, Continuation, Generation
from l4export.runtimes.images.image_features import ImageFeatures
from l4export.runtimes.images.prepared_prompt import place_images
from l4export.runtimes.images.processor import ProcessedImages
from l4export.runtimes.limits import Limits, checked_limits, checked_logprobs
from l4export.runtimes.new_tokens import Images
from l4export.runtimes.sampling.recommended import recommended_sampling
from l4export.runtimes.sampling.sampler import samplers
from l4export.runtimes.sampling.settings import Sampling
from l4export.runtimes.saved_session import read_session
from l4export.runtimes.session import Session
from l4export.runtimes.text.codec import TextCodec
from l4export.runtimes.text.message_images import Fetch
from l4export.runtimes.text.stop_strings import checked_stop_strings

__all__ = ["Engine"]


_KEPT = {"directory", "manifest", "config"}
"""What a closed engine still knows."""


class Engine(Closing, ABC):
    """A decoder, loaded once and shared by any number of sessions and threads. Made by `l4export.runtimes.load`.

    It is closed by `close` or at the end of a `with` block.

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

    def close(self) -> None:
        """Let go of decoder, vision tower and tokenizer; whatever is then asked of the engine is refused in one line.

        Sessions and generations go on, but cannot be forked. Memory is free when those are closed or gone, too.
        """
        for name in self.__dict__.keys() - _KEPT:
            self.__dict__.pop(name, None)

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            """Called for what is not there: after `close`, all that a runtime has. Type checkers do not see it."""
            if name.startswith("__") or "features" in self.__dict__ or "manifest" not in self.__dict__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise InputError(f"{self.directory}: the engine is closed; load it again")

    def forget_images(self) -> None:
        """Free what is kept of images. Sessions go on; an image that is shown again is computed again."""
        if self.features:
            self.features.forget()

    @cached_property
    def text(self) -> TextCodec | None:
        """Tokenizer and chat template; None when the checkpoint had no tokenizer.json."""
        self._check_open()
        return TextCodec.open(self.directory)

    @cached_property
    def recommended_sampling(self) -> Sampling:
        """What generation_config.json says of sampling, as transformers' `generate` obeys it; greedy if nothing.

        Nothing uses it unless it is asked for.

        Raises:
            InputError: a file that is broken, or has a setting out of range or one that this runtime does not have.
        """
        self._check_open()
        return recommended_sampling(self.directory)

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
        self._check_open()
        return Session(self.new_cache, self.manifest, batch, capacity, start, self.features)

    def load_session(self, path: str | Path) -> Session:
        """Open the session that `Session.save` wrote, to continue it.

        Raises:
            InputError: no such file, one that is damaged, or one that another engine has saved.
            StorageError: reading failed.
        """
        self._check_open()
        state, tokens = read_session(a_path(path, "path"), self.manifest)
        return Session.restored(self.new_cache, self.manifest, state, tokens, self.features)

    def generate(
        self,
        token_ids: Sequence[int],
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        stop_token_ids: Iterable[int] | None = None,
        stop_strings: str | Sequence[str] = (),
        logprobs: int | None = None,
        images: ProcessedImages | None = None,
        session: Session | None = None,
    ) -> Generation:
        """Continue one prompt; yields each new token as it is chosen, a stop token last.

        Everything is checked when this is called; tokens are computed as they are asked for, by one caller at a time.

        Args:
            token_ids: The prompt. `prepare` makes it and `images` of messages.
            max_new_tokens: The most tokens that are chosen.
            sampling: How they are chosen; None: greedily. `recommended_sampling` is what the checkpoint's authors say.
            stop_token_ids: Tokens at which it stops; None: the model's end-of-sequence tokens.
            stop_strings: Texts at which it stops. `Generation.text` ends before the first of them; the tokens that made
                it are given as they come.
            logprobs: Notes the log probability of each token, and those of that many of the likeliest ones, in
                `Generation.row.logprobs`; None: none.
            images: Those that the prompt shows.
            session: One of this engine, of one row, in which to continue; None: a new one. Afterwards it holds the
                prompt and the new tokens but the last, so feed that first.

        Raises:
            InputError: at the call, an empty prompt, one longer than `max_context`, ids out of range, bad settings,
                stop strings without a tokenizer, other images than the prompt has tokens for, or a session that does
                not fit; while tokens are asked for, another thread that asks too, a session that was changed, or an
                engine that refuses a call.
        """
        if not is_sequence(token_ids):
            raise InputError(f"token ids must be a sequence of integers, not {type(token_ids).__name__}")
        limits = checked_limits(self.config, max_new_tokens, stop_token_ids)
        strings = checked_stop_strings(stop_strings)
        given = Sampling() if sampling is None else sampling
        return Generation(
            self._continuation([token_ids], limits, given, strings, logprobs, images, session), self._codec
        )

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int = 64,
        sampling: Sampling | Sequence[Sampling] | None = None,
        stop_token_ids: Iterable[int] | None = None,
        stop_strings: str | Sequence[str] = (),
        logprobs: int | None = None,
        images: Sequence[ProcessedImages | None] | None = None,
        session: Session | None = None,
    ) -> BatchGeneration:
        """Continue several prompts of any lengths; yields one list a step, None where a row has ended.

        Arguments are those of `generate`, but `sampling` may be given for each row, `images` has those of each prompt,
        or None for a prompt without, and `session` has a row for each prompt. In a given session a row with an empty
        prompt takes no part.

        Rows share the decoder calls, which is what makes a batch faster than its prompts one by one. A row's logits are
        those of `generate` up to the engine's rounding, because kernels add up in another order when rows are fed
        together. Where nothing is rounded below float32 that is a millionth of the largest logit. Where activations are
        rounded to int8 (int4 and int8 weights of `ort-cpu` with `accuracy_level` 4, int8 experts with any), or float16
        or a quantised KV cache is used, such a rounding can go the other way, which changes logits by up to a few per
        cent of the largest. So a row says what `generate` says unless two tokens are nearly equally likely.
        docs/guide/threads.md has what was measured; call `generate` for each prompt where that matters.

        What a row draws does not depend on the other rows. With one `Sampling` for all, each row draws from a random
        stream of its own, and row 0 draws what `generate` draws; with one for each, every row draws what `generate`
        draws with it.

        Raises as `generate`.
        """
        limits = checked_limits(self.config, max_new_tokens, stop_token_ids)
        strings = checked_stop_strings(stop_strings)
        given = Sampling() if sampling is None else sampling
        return BatchGeneration(
            self._continuation(prompts, limits, given, strings, logprobs, images, session), self._codec
        )

    def _continuation(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        sampling: object,
        stop_strings: tuple[str, ...],
        logprobs: int | None,
        images: Images,
        session: Session | None,
    ) -> Continuation:
        """Check everything; compute nothing yet."""
        self._check_open()
        if session is not None and (not isinstance(session, Session) or session.manifest != self.manifest):
            raise InputError(f"session is {shown(session)}: give one of this engine")
        if not is_sequence(prompts) or not all(map(is_sequence, prompts)):
            raise InputError("prompts must be a sequence that has a sequence of token ids for each row")
        if not (any if session is not None else all)(map(len, prompts)):
            raise InputError("a prompt is empty: give at least one token")
        each = samplers(sampling, len(prompts)) if len(prompts) else []
        logprobs = checked_logprobs(self.config, logprobs)
        limit, longest = self.manifest.max_context, max(map(len, prompts), default=0)
        is_own = session is None
        if session is None:
            room = min(limit, longest + limits.max_new_tokens) if longest <= limit else None
            session = self.session(len(prompts), room)
        new = session.checked(list(prompts), images)
        parts = zip(session.state.ids, new.rows, each, strict=True)
        rows = [GeneratedRow(history, ids, sampler, limits, logprobs) for history, ids, sampler in parts]
        if stop_strings:
            codec = self._codec()
            for row in rows:
                row.speak(codec, stop_strings)
        return Continuation(session, is_own, new, rows)

    def _codec(self) -> TextCodec:
        if self.text is None:
            raise InputError(f"{self.directory}: has no tokenizer.json, which text and stop strings need")
        return self.text

    def _check_open(self) -> None:
        _ = self.features  # refused by `__getattr__` when it is gone
