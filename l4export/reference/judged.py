"""What parity and quality judge: an engine, or a checkpoint that l4export wrote for other programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from l4export import runtimes
from l4export.engine.checkpoint_manifest import is_written_checkpoint
from l4export.engine.described import Described
from l4export.errors import InputError
from l4export.model.config import ModelConfig
from l4export.reference.transformers_engine import TransformersEngine
from l4export.runtimes.images.image_features import ImageFeatures
from l4export.runtimes.images.processor import ProcessedImages
from l4export.runtimes.text.codec import TextCodec

__all__ = ["Judged", "JudgedSession", "open_judged"]


class JudgedSession(Protocol):
    """One row of tokens, as `l4export.runtimes.session.Session` has it."""

    def append(
        self, token_ids: NDArray[np.int64], last_only: bool = False, images: ProcessedImages | None = None
    ) -> NDArray[np.float32]:
        """Feed ids int64 [T] in one call: logits float32 [1, T, vocab], or [1, 1, vocab] of the last one."""

    def step(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed the one token of `tokens`: logits float32 [1, vocab]."""


class Judged(Protocol):
    """What `l4export.runtimes.engine.Engine` has of what a comparison uses."""

    directory: Path
    config: ModelConfig
    features: ImageFeatures | None

    @property
    def manifest(self) -> Described:
        """What it says of itself."""

    @property
    def provider(self) -> str:
        """What executes it, as a report should name it."""

    @property
    def text(self) -> TextCodec | None:
        """Its tokenizer; None where it has none."""

    def session(self, *, capacity: int) -> JudgedSession:
        """A session of one row of up to `capacity` tokens."""

    def generate(
        self,
        token_ids: list[int],
        *,
        max_new_tokens: int,
        stop_token_ids: tuple[int, ...],
        images: ProcessedImages | None,
    ) -> Iterator[int]:
        """The likeliest tokens after a prompt."""


def open_judged(directory: Path, provider: str | None = None, as_served: bool = False) -> Judged:
    """Open an engine with its own runtime, or a written checkpoint with transformers.

    `provider` is as for `l4export.load`, and `as_served` as for `TransformersEngine`.

    Raises:
        InputError: neither of them, or one that is damaged; a provider for a checkpoint.
        EnvironmentLacks: a package or a device is missing.
    """
    if not is_written_checkpoint(directory):
        return runtimes.load(directory, provider=provider)
    if provider is not None:
        raise InputError(f"--provider: {directory} is a checkpoint, which transformers runs on a CPU; leave it out")
    return TransformersEngine(directory, as_served)
