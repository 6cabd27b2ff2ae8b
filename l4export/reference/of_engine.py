"""The reference of an engine: the same layers of the checkpoint that it was built from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from l4export.checkpoint import Checkpoint, open_checkpoint
from l4export.checkpoint.adapter import ADAPTER_FILE
from l4export.engine.described import Described
from l4export.errors import InputError
from l4export.inspection.engine_weights import open_weights
from l4export.model.config import ModelConfig
from l4export.model.vision_config import VisionConfig
from l4export.reference.streamed_model import Replacement, StreamedReference
from l4export.reference.transformers_model import HFReference
from l4export.reference.vision_tower import HFVisionTower

__all__ = ["check_same_tower", "load_reference", "load_tower", "open_reference", "reference_name", "sliced_layers"]

_MAY_DIFFER = frozenset(
    {"max_position_embeddings", "tie_word_embeddings", "bos_token_id", "eos_token_ids", "pad_token_id"}
)
"""Fields of a config that change no logit: limits, names of tokens, and whether a head is stored once or twice."""


def reference_name(checkpoint: Path, adapters: Sequence[Path], *remarks: str) -> str:
    """What a report calls a reference."""
    return ", ".join([" with ".join(map(str, (checkpoint, *adapters))), *remarks])


def sliced_layers(manifest: Described) -> tuple[int, int] | None:
    """The slice (start, stop) of the checkpoint's layers that the engine was built of; None for all of them."""
    match manifest.options["weights"].get("layers"):
        case None:
            return None
        case [int(start), int(stop)]:
            return start, stop
    raise InputError("the manifest's option 'layers' is not [first, last + 1]; build the engine again")


def open_reference(
    manifest: Described, checkpoint: Path, adapters: Sequence[Path] = (), replaced: Replacement | None = None
) -> StreamedReference:
    """The layer-streamed reference of an engine: the same layers of the checkpoint that it was built from, with the
    same adapters.

    Raises:
        InputError: a checkpoint of another architecture, or other adapters.
        EnvironmentLacks: torch or transformers is missing.
    """
    reference = StreamedReference(_opened(manifest, checkpoint, adapters), sliced_layers(manifest), replaced)
    _check_same_model(checkpoint, reference.config, manifest.model)
    return reference


def load_reference(
    manifest: Described, checkpoint: Path, adapters: Sequence[Path] = (), dequantized: Path | None = None
) -> HFReference:
    """The whole reference of an engine, in transformers: the same layers of the checkpoint that it was built from, with
    the same adapters.

    With `dequantized`, the engine's directory, the reference has the engine's own weights, dequantised, and rounds
    their inputs as the engine does.

    Raises:
        InputError: a checkpoint of another architecture, or other adapters.
        EnvironmentLacks: torch or transformers is missing.
    """
    reference = HFReference(_opened(manifest, checkpoint, adapters), sliced_layers(manifest))
    _check_same_model(checkpoint, reference.config, manifest.model)
    if dequantized is not None:
        weights = open_weights(dequantized)
        reference.round_weights(weights.half_floats)
        values = ((name, weights.rows(name, slice(None))) for name in weights.names)
        reference.replace((name, value) for name, value in values if value is not None)
        reference.round_inputs(weights.input_scales)
    return reference


def load_tower(manifest: Described, checkpoint: Path, adapters: Sequence[Path] = ()) -> HFVisionTower:
    """The vision tower of an engine that has one, in transformers, on the weights of the checkpoint it was built from,
    with the same adapters.

    Raises:
        InputError: a checkpoint without a tower, or with another one, or other adapters.
        EnvironmentLacks: torch or transformers is missing.
    """
    opened = _opened(manifest, checkpoint, adapters)
    tower = HFVisionTower(opened)
    check_same_tower(manifest, opened)
    return tower


def check_same_tower(manifest: Described, checkpoint: Checkpoint) -> None:
    """Check that the tower of an engine that has one may come from a checkpoint.

    Raises:
        InputError: the checkpoint has none, or another one.
    """
    assert manifest.vision is not None
    _check_same_model(checkpoint.path, checkpoint.vision_config(), manifest.vision)


def _opened(manifest: Described, checkpoint: Path, adapters: Sequence[Path]) -> Checkpoint:
    """The checkpoint with adapters, which must be those of the engine: with others its weights are others."""
    opened = open_checkpoint(checkpoint, adapters)
    used = {name: record for name, record in manifest.source.items() if ADAPTER_FILE.fullmatch(name)}
    given = {name: file for adapter in opened.adapters for name, file in adapter.files.items()}
    if len(given) != len(used):
        raise InputError(
            f"the engine was built with {_adapters(len(used))}, and the reference has {_adapters(len(given))}; name "
            "those that it was built with, by --adapter"
        )
    for adapter in opened.adapters:
        for name, file in adapter.files.items():
            if used.get(name) != file.record():
                raise InputError(
                    f"--adapter {adapter.path}: {file.path.name} is not what the engine was built with; name the same "
                    "adapters in the same order"
                )
    return opened


def _adapters(files: int) -> str:
    """How many adapters have so many files."""
    return f"{files // 2 or 'no'} adapter{'s' if files > 2 else ''}"


def _check_same_model(
    checkpoint: Path, reference: ModelConfig | VisionConfig, engine: ModelConfig | VisionConfig
) -> None:
    """Refuse a reference of another architecture: without a threshold, nothing else would show it."""
    theirs = reference.to_dict()
    for name, value in engine.to_dict().items():
        if name not in _MAY_DIFFER and theirs[name] != value:
            raise InputError(
                f"{checkpoint}: another model than the engine's ({name} differs); name the checkpoint that it was "
                "built from"
            )
