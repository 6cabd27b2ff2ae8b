"""A checkpoint that l4export wrote for other programs, run by one of them: transformers with compressed-tensors."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.checkpoint import Checkpoint, open_checkpoint
from l4export.engine.checkpoint_manifest import load_checkpoint_manifest
from l4export.engine.file_checks import check_records
from l4export.errors import EnvironmentLacks, InputError, one_line
from l4export.model.config import ModelConfig
from l4export.model.vision_config import VisionConfig
from l4export.reference.transformers_model import UNBOUNDED_CHUNK, check_reference_packages
from l4export.runtimes.images.image_features import ImageFeatures
from l4export.runtimes.images.processor import ProcessedImages
from l4export.runtimes.text.codec import TextCodec
from l4export.storage.file_records import FileRecord

__all__ = ["DescribedCheckpoint", "TransformersEngine"]


@dataclass(frozen=True)
class DescribedCheckpoint:
    """A written checkpoint as transformers runs it; see `l4export.engine.described.Described`."""

    target: str
    model: ModelConfig
    vision: VisionConfig | None
    precision: dict[str, str]
    options: dict[str, Any]
    source: dict[str, FileRecord]
    files: dict[str, FileRecord]
    kv_layout: str = "dynamic"

    @property
    def max_context(self) -> int:
        """What its config.json tells every loader."""
        return self.model.max_position_embeddings


class TransformersEngine:
    """A written checkpoint, loaded by transformers itself in float32 on the CPU.

    compressed-tensors finds the quantised layers by config.json and decompresses them: config, names, codes and scales
    are read by none of l4export's own readers. In float32 a code times its scale is exact, so that what is left of a
    difference to another reading of the same codes is float32's rounding.

    Servers round activations too where config.json says so (FP8). With `as_served` transformers does it as well;
    without, the weights alone are quantised.

    Attributes:
        directory: The checkpoint's.
        manifest: What is known of it.
        config: The text model's.
        features: The vision tower, with the features that are kept; None where there is none.

    Raises:
        InputError: no such checkpoint, one that is damaged, or one that transformers refuses.
        StorageError: reading failed.
        EnvironmentLacks: torch, transformers or compressed-tensors is not installed.
    """

    def __init__(self, directory: Path, as_served: bool = False) -> None:
        written = load_checkpoint_manifest(directory)
        check_records(directory, written.files, "write or copy the checkpoint again")
        opened = open_checkpoint(directory)
        _check_packages()
        vision = opened.vision_config() if opened.has_vision() else None
        rounded = as_served and _rounds_activations(opened.raw_config)
        self.directory, self.config = directory, opened.config
        self._model = _loaded(opened, rounded)
        self._image_token = vision.image_token_id if vision else None
        self.features = ImageFeatures(self._see) if vision else None
        floats = "fp32"
        self.manifest = DescribedCheckpoint(
            target=written.target,
            model=opened.config,
            vision=vision,
            precision={
                "compute": floats,
                "weights": _stored_floats(opened),
                "kv_cache": floats,
                "activations": "fp8" if rounded else floats,
                "quant": _kinds(opened),
                **({"vision": floats} if vision else {}),
            },
            options=written.options,
            source=written.source,
            files=written.files,
        )

    @property
    def provider(self) -> str:
        """The programs, and what of activations."""
        import compressed_tensors
        import transformers

        rounded = self.manifest.precision["activations"] == "fp8"
        return (
            f"transformers {transformers.__version__} with compressed-tensors {compressed_tensors.__version__}, "
            f"float32{', activations rounded to FP8' if rounded else ''}"
        )

    @cached_property
    def text(self) -> TextCodec | None:
        """Tokenizer and chat template; None without a tokenizer.json."""
        return TextCodec.open(self.directory)

    def session(self, *, capacity: int) -> _Session:
        """A session of one row. transformers' cache grows, so that `capacity` sets no limit."""
        return _Session(self)

    def generate(
        self,
        token_ids: list[int],
        *,
        max_new_tokens: int,
        stop_token_ids: tuple[int, ...],
        images: ProcessedImages | None,
    ) -> Iterator[int]:
        """The likeliest tokens after a prompt, up to one that stops."""
        session = self.session(capacity=len(token_ids) + max_new_tokens)
        logits = session.append(np.asarray(token_ids), last_only=True, images=images)[:, -1]
        for _ in range(max_new_tokens):
            token = int(logits[0].argmax())
            yield token
            if token in stop_token_ids:
                return
            logits = session.step([token])

    def call(
        self, ids: NDArray[np.int64], cache: Any, last_only: bool, features: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float32], Any]:
        """Logits float32 [1, T, vocab], or of the last token alone, of ids [T] behind a cache, and the cache with them.

        `features` [rows, D] take the places of the embeddings of the image tokens, in order.

        Raises:
            InputError: not as many features as image tokens.
        """
        import torch

        tokens = torch.from_numpy(np.array(ids, np.int64)[None])
        given: dict[str, Any] = {"input_ids": tokens}
        with torch.inference_mode():
            if features is not None:
                places = (tokens[0] == self._image_token).nonzero()[:, 0]
                if len(places) != len(features):
                    raise InputError(f"{len(features)} rows of images for {len(places)} image tokens")
                embedded = self._model.get_input_embeddings()(tokens).clone()
                embedded[0, places] = torch.from_numpy(features.copy())
                given = {"inputs_embeds": embedded}
            kept = int(last_only)
            output = self._model(**given, past_key_values=cache, use_cache=True, logits_to_keep=kept)
        logits: NDArray[np.float32] = output.logits.numpy()
        return logits, output.past_key_values

    def _see(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Tiles float32 [n, 3, T, T] to rows for their image tokens, float32 [rows, D]. One tile at a time."""
        import torch

        with torch.inference_mode():
            rows = [self._rows(torch.from_numpy(tile[None].copy())) for tile in tiles]
        return np.concatenate(rows)

    def _rows(self, tile: Any) -> NDArray[np.float32]:
        seen = self._model.multi_modal_projector(self._model.vision_model(tile).last_hidden_state)
        rows: NDArray[np.float32] = seen.flatten(0, 1).numpy()
        return rows


class _Session:
    """One row of tokens in transformers' own cache; see `l4export.reference.judged.JudgedSession`."""

    def __init__(self, engine: TransformersEngine) -> None:
        self._engine = engine
        self._cache: Any = None

    def append(
        self, token_ids: NDArray[np.int64], last_only: bool = False, images: ProcessedImages | None = None
    ) -> NDArray[np.float32]:
        """Feed ids int64 [T] in one call, with their images: logits float32 [1, T, vocab], or [1, 1, vocab]."""
        rows = None
        if images is not None and self._engine.features is not None:
            rows = np.concatenate(self._engine.features.of(images))
        logits, self._cache = self._engine.call(token_ids, self._cache, last_only, rows)
        return logits

    def step(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed one token: logits float32 [1, vocab]."""
        return self.append(np.asarray(tokens))[:, -1]


def _check_packages() -> None:
    check_reference_packages()
    try:
        import compressed_tensors  # noqa: F401
    except ImportError as error:
        raise EnvironmentLacks(
            "a checkpoint for other programs is run by transformers, which needs compressed-tensors for it: "
            "pip install 'l4export[reference]'"
        ) from error


def _rounds_activations(raw: dict[str, Any]) -> bool:
    groups = raw["quantization_config"]["config_groups"].values()
    return any(group.get("input_activations") for group in groups)


def _stored_floats(opened: Checkpoint) -> str:
    """What weights that are not quantised are stored in: of 16 bits, if some are."""
    found = {tensor.entry.dtype for name, tensor in opened.tensors.items() if name.endswith("weight")}
    return next((name for dtype, name in (("BF16", "bf16"), ("F16", "fp16")) if dtype in found), "fp32")


def _kinds(opened: Checkpoint) -> str:
    """What the weights are quantised to, as `Manifest.precision` has it."""
    schemes = opened.quantization.schemes if opened.quantization else ()
    return ", ".join(sorted({f"{'fp' if scheme.is_float else 'int'}{scheme.bits}" for scheme in schemes})) or "none"


def _loaded(opened: Checkpoint, rounded: bool) -> Any:
    """The model in float32, decompressed."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    whole = bool(opened.prefix)
    architecture = transformers.Llama4ForConditionalGeneration if whole else transformers.Llama4ForCausalLM
    # Both libraries show bars of their own on standard error.
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            model, report = architecture.from_pretrained(
                opened.path,
                config=_runnable(opened.path, rounded),
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
            model.eval()(input_ids=torch.zeros((1, 1), dtype=torch.int64))  # the first call decompresses
        except Exception as error:  # whatever the two find
            raise InputError(f"{opened.path}: transformers refuses it ({one_line(error)}); write it again") from error
    for kind, what in (("missing_keys", "misses"), ("unexpected_keys", "has no place for")):
        if names := sorted(report[kind]):  # it would go on, with random numbers or without them
            raise InputError(f"{opened.path}: transformers {what} the tensor {names[0]!r}; write the checkpoint again")
    return model


def _runnable(path: Path, rounded: bool) -> Any:
    """The config as transformers reads it, but for what it cannot run, and without activations to be rounded."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    text = config.get_text_config()
    if text.attention_chunk_size is None:
        text.attention_chunk_size = UNBOUNDED_CHUNK
    config.quantization_config = copy.deepcopy(config.quantization_config)
    if not rounded:
        for group in config.quantization_config["config_groups"].values():
            group["input_activations"] = None
    return config
