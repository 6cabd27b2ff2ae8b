"""What can be said of anything that computes a model's logits, be it an engine or a checkpoint that others run."""

from __future__ import annotations

from typing import Any, Protocol

from l4export.model.config import ModelConfig
from l4export.model.vision_config import VisionConfig
from l4export.storage.file_records import FileRecord

__all__ = ["Described"]


class Described(Protocol):
    """What a comparison must know of what it judges. The manifest of an engine has it (`Manifest`)."""

    @property
    def target(self) -> str:
        """The value of `--target` that made it."""

    @property
    def model(self) -> ModelConfig:
        """The text model."""

    @property
    def vision(self) -> VisionConfig | None:
        """The vision tower; None where there is none."""

    @property
    def precision(self) -> dict[str, str]:
        """As `Manifest.precision`."""

    @property
    def max_context(self) -> int:
        """The longest sequence, in tokens."""

    @property
    def kv_layout(self) -> str:
        """How keys and values are kept."""

    @property
    def options(self) -> dict[str, Any]:
        """Of the build; `weights` decide which numbers it computes with."""

    @property
    def source(self) -> dict[str, FileRecord]:
        """The files that it was made from, by name."""

    @property
    def files(self) -> dict[str, FileRecord]:
        """Its own files, by name."""
