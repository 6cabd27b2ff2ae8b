"""The reference of an engine: the same layers of the checkpoint that it was built from."""

from __future__ import annotations

from pathlib import Path

from l4export.checkpoint import open_checkpoint
from l4export.engine.manifest import Manifest
from l4export.errors import InputError
from l4export.model.config import ModelConfig
from l4export.reference.streamed_model import Replacement, StreamedReference

__all__ = ["check_same_model", "open_reference", "sliced_layers"]

_MAY_DIFFER = frozenset(
    {"max_position_embeddings", "tie_word_embeddings", "bos_token_id", "eos_token_ids", "pad_token_id"}
)
"""Fields of a config that change no logit: limits, names of tokens, and whether a head is stored once or twice."""


def check_same_model(checkpoint: Path, reference: ModelConfig, engine: ModelConfig) -> None:
    """Refuse a reference of another architecture: where no threshold is set, nothing else would tell.

    Raises:
        InputError: it is; the first field that differs is named.
    """
    theirs = reference.to_dict()
    for name, value in engine.to_dict().items():
        if name not in _MAY_DIFFER and theirs[name] != value:
            raise InputError(
                f"{checkpoint}: another model than the engine's ({name} differs); name the checkpoint that it was "
                "built from"
            )


def sliced_layers(manifest: Manifest) -> tuple[int, int] | None:
    """The slice (start, stop) of the checkpoint's layers that the engine was built of; None for all of them."""
    match manifest.options["weights"].get("layers"):
        case None:
            return None
        case [int(start), int(stop)]:
            return start, stop
    raise InputError("the manifest's option 'layers' is not [first, last + 1]; build the engine again")


def open_reference(manifest: Manifest, checkpoint: Path, replaced: Replacement | None = None) -> StreamedReference:
    """The layer-streamed reference of an engine: the same layers of the checkpoint that it was built from.

    Raises:
        InputError: a checkpoint of another architecture.
        EnvironmentLacks: torch or transformers is missing.
    """
    reference = StreamedReference(open_checkpoint(checkpoint), sliced_layers(manifest), replaced)
    check_same_model(checkpoint, reference.config, manifest.model)
    return reference
