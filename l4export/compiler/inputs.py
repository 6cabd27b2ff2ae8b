"""What a build reads, opened once: the checkpoint, its small files, and the texts that something is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from l4export.calibration.text import CalibrationText, TextReader
from l4export.checkpoint import Checkpoint, open_checkpoint
from l4export.compiler.options import DEFAULT_MAX_CONTEXT, BuildOptions
from l4export.engine.companions import open_companions
from l4export.engine.kv_cache import KV_BITS
from l4export.errors import InputError
from l4export.model.config import ModelConfig
from l4export.model.vision_config import VisionConfig
from l4export.runtimes.text.check import check_text
from l4export.storage.opened_file import OpenedFile

__all__ = ["BuildInputs", "Texts", "open_inputs"]


@dataclass(frozen=True)
class Texts:
    """What is measured on; None where nothing is.

    Attributes:
        weights: For the codes of integer weights.
        damage: For the choice of a policy.
        kv_cache: For the scales of an int8 or int4 cache, as one sequence.
        activations: The same for the scales of FP8 activations.
    """

    weights: CalibrationText | None = None
    damage: CalibrationText | None = None
    kv_cache: CalibrationText | None = None
    activations: CalibrationText | None = None


@dataclass(frozen=True)
class BuildInputs:
    """An opened checkpoint, and everything else that a build reads.

    Attributes:
        checkpoint: All of it.
        config: The model that is built: the checkpoint's, or that of the layers in `options.layers`.
        vision: The vision tower that is built; None: none is.
        max_context: The longest sequence in tokens that the engine is for.
        companions: The small files that are copied into the engine, by their names in it.
        about_text: What a person should know about tokenizer and chat template, a line each.
        texts: What is measured on.
    """

    checkpoint: Checkpoint
    config: ModelConfig
    vision: VisionConfig | None
    max_context: int
    companions: Mapping[str, OpenedFile]
    about_text: tuple[str, ...]
    texts: Texts

    def source_files(self, names: Iterable[str]) -> dict[str, OpenedFile]:
        """The config, the files with weights, and those of adapters, by name, as they were opened for reading."""
        opened = {file.path.name: file.opened for file in self.checkpoint.files}
        for adapter in self.checkpoint.adapters:
            opened |= adapter.files
        opened[self.checkpoint.config_file.path.name] = self.checkpoint.config_file
        return {name: opened[name] for name in names}


def open_inputs(checkpoint_path: Path, options: BuildOptions) -> BuildInputs:
    """Open a checkpoint and read the texts that `options` need. Reads no weights.

    Raises:
        InputError: a checkpoint, a text or an option that cannot be used, or a file that was replaced meanwhile; by
            name.
        EnvironmentLacks: there is text, and the package tokenizers is missing.
        StorageError: reading failed.
    """
    companions = open_companions(checkpoint_path)
    checkpoint = open_checkpoint(checkpoint_path, options.adapters)
    config = checkpoint.config if options.layers is None else checkpoint.config.slice_layers(*options.layers)
    vision = _vision(checkpoint, options)
    max_context = _max_context(config, options.max_context)
    about_text = tuple(check_text(checkpoint.path, config.vocab_size))
    texts = _texts(checkpoint, options, vision)
    for file in companions.values():  # the tokenizer and the stop tokens were read by path in between
        file.check_in_place()
    return BuildInputs(checkpoint, config, vision, max_context, companions, about_text, texts)


def _vision(checkpoint: Checkpoint, options: BuildOptions) -> VisionConfig | None:
    if options.vision == "none":
        return None
    if not checkpoint.has_vision():
        if options.vision_dtype is not None:
            raise InputError(f"--vision-dtype: {checkpoint.path} has no vision tower; leave it out")
        return None
    try:
        return checkpoint.vision_config()
    except InputError as error:
        raise InputError(f"{error}; --vision none builds without the tower") from error


def _max_context(config: ModelConfig, asked: int | None) -> int:
    limit = config.max_position_embeddings
    if asked is None:
        return min(limit, DEFAULT_MAX_CONTEXT)
    if not 1 <= asked <= limit:
        raise InputError(f"--max-context {asked}: this model takes 1 to {limit} tokens")
    return asked


def _texts(checkpoint: Checkpoint, options: BuildOptions, vision: VisionConfig | None) -> Texts:
    blind = "--vision none builds no tower; leave one of them out" if options.vision == "none" else ""
    reader, path = TextReader(checkpoint.path, checkpoint.config, vision, blind), options.calibrate
    return Texts(
        weights=reader.for_weights(path) if path and not options.activations else None,
        damage=reader.for_damage(path) if options.bits_per_weight is not None else None,
        kv_cache=reader.for_scales(options.kv_calibrate) if options.kv_dtype in KV_BITS else None,
        activations=reader.for_scales(path, "--calibrate") if options.activations else None,
    )
