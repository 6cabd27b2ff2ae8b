"""What a checkpoint or an engine is: architecture, numbers of parameters, dtypes, bytes, passes."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from l4export.checkpoint import Checkpoint, open_checkpoint
from l4export.engine.kv_cache import kv_bytes, layer_kv_bytes
from l4export.engine.manifest import MANIFEST, Manifest, load_manifest
from l4export.errors import InputError, printable
from l4export.inspection.graph_file import load_graph
from l4export.inspection.weight_bytes import bits_per_weight
from l4export.model.config import ModelConfig
from l4export.model.config_fields import Fields
from l4export.model.tensors import parameter_count, tensors
from l4export.model.weight_names import kind_of
from l4export.quantization.policy import Rule
from l4export.runtimes.arguments import a_path
from l4export.targets import CHECKPOINT_TARGETS, TARGETS
from l4export.targets.kept_codes import keep_codes

__all__ = ["CheckpointFacts", "EngineFacts", "ModelFacts", "inspect"]


@dataclass(frozen=True)
class ModelFacts:
    """A text model's architecture.

    `parameters` counts all of them, `active_parameters` those that one token uses. `heads` are (query heads, key and
    value heads, width of a head). `rope_layers` and `chunked_layers` count layers; `attention_chunk_size` is in tokens,
    None where no layer is chunked. `rope_scaling` is the factor of a scaling of RoPE's frequencies, None without it.
    """

    parameters: int
    active_parameters: int
    layers: int
    moe_layers: int
    experts: int
    experts_per_token: int
    hidden_size: int
    heads: tuple[int, int, int]
    vocab_size: int
    rope_layers: int
    rope_scaling: float | None
    qk_norm: bool
    chunked_layers: int
    attention_chunk_size: int | None
    temperature_tuning: bool
    tied_embeddings: bool
    max_position_embeddings: int

    @staticmethod
    def of(config: ModelConfig) -> ModelFacts:
        """The facts of a configuration."""
        count = parameter_count(config)
        return ModelFacts(
            parameters=count.total,
            active_parameters=count.active,
            layers=config.num_hidden_layers,
            moe_layers=len(config.moe_layers),
            experts=config.num_local_experts,
            experts_per_token=config.num_experts_per_tok if config.moe_layers else 0,
            hidden_size=config.hidden_size,
            heads=(config.num_attention_heads, config.num_key_value_heads, config.head_dim),
            vocab_size=config.vocab_size,
            rope_layers=sum(config.rope_layers),
            rope_scaling=None if config.rope_scaling is None else config.rope_scaling.factor,
            qk_norm=config.use_qk_norm,
            chunked_layers=sum(config.chunked_layers),
            attention_chunk_size=config.attention_chunk_size,
            temperature_tuning=config.attn_temperature_tuning and not all(config.rope_layers),
            tied_embeddings=config.tie_word_embeddings,
            max_position_embeddings=config.max_position_embeddings,
        )


class _Facts:
    """Base of facts, which are dataclasses with a `model`."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """`kind` and all facts in one flat dictionary, those of the model among them."""
        facts: dict[str, Any] = {"kind": self.kind}
        for name, value in dataclasses.asdict(self).items():
            facts |= value if name == "model" else {name: value}
        return facts

    def to_json(self) -> str:
        """`to_dict` as a JSON document."""
        return json.dumps(self.to_dict())


@dataclass(frozen=True)
class CheckpointFacts(_Facts):
    """A checkpoint, from its config and the headers of its files.

    `tensors`, `bytes` and `bytes_by_dtype` (dtypes as safetensors spells them) are of the text model, `files` has the
    size of every file with weights in bytes. Where weights are quantised, `stored_as` says for each kind of weight in
    which dtypes and schemes it is there, and `bits_per_weight` in how many bits, scales and the like included. Both
    are empty where all weights are floats. `kept_codes` says for each target which kinds of weight `build` takes over
    code by code, if it is not asked for others; what is not named there is dequantised.
    """

    kind = "checkpoint"
    path: str
    model: ModelFacts
    tensors: int
    files: dict[str, int]
    bytes: int
    bytes_by_dtype: dict[str, int]
    bytes_of_other_modalities: int
    stored_as: dict[str, tuple[str, ...]]
    bits_per_weight: dict[str, float]
    kept_codes: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class EngineFacts(_Facts):
    """An engine, from its manifest and its graph.

    `generator` names the program that built it. `precision` says what is stored and computed in which dtype.
    `bits_per_weight` are those of everything stored of the checkpoint's weights, scales included, for each parameter.

    `kv_slots` are those of a row by kind of layer, None for as many as there are tokens. `kv_bytes` is what the KV
    cache of one row of `max_context` tokens takes, `kv_bytes_per_token` what one more token takes in the layers that
    keep all tokens.

    `stored_codes` says what became of weights that the checkpoint stores quantised, and is empty where all are floats.
    `adapters` says what was merged into the weights, and is empty where nothing was.

    `engines` has the layers of each compiled engine, and is empty where nothing is compiled. `check` has the layers of
    the graph by which a GPU is judged, and is empty where there is none. `files` has the size of every file in bytes,
    `bytes` their sum.
    """

    kind = "engine"
    path: str
    generator: str
    target: str
    model: ModelFacts
    precision: dict[str, str]
    bits_per_weight: float
    max_context: int
    kv_layout: str
    kv_slots: dict[str, int | None]
    kv_bytes_per_token: int
    kv_bytes: int
    stored_codes: dict[str, str]
    adapters: dict[str, str]
    engines: dict[str, str]
    check: dict[str, str]
    passes: tuple[str, ...]
    files: dict[str, int]
    bytes: int


def inspect(path: str | os.PathLike[str]) -> CheckpointFacts | EngineFacts:
    """Say what the checkpoint or engine in the directory `path` is. No weight is read.

    Raises:
        InputError: neither a checkpoint nor an engine, or a damaged one.
        StorageError: reading failed.
    """
    directory = a_path(path, "path")
    return _engine(directory) if (directory / MANIFEST).is_file() else _checkpoint(directory)


def _checkpoint(path: Path) -> CheckpointFacts:
    checkpoint = open_checkpoint(path)
    text = checkpoint.text_tensors()
    formats = checkpoint.formats() if checkpoint.is_quantized() else {}
    dtypes: Counter[str] = Counter()
    for tensor in text:
        dtypes[tensor.entry.dtype] += tensor.nbytes
    return CheckpointFacts(
        path=str(path),
        model=ModelFacts.of(checkpoint.config),
        tensors=len(text),
        files={file.path.name: file.size for file in checkpoint.files},
        bytes=dtypes.total(),
        bytes_by_dtype=dict(dtypes),
        bytes_of_other_modalities=sum(tensor.nbytes for tensor in checkpoint.tensors.values()) - dtypes.total(),
        stored_as={kind: names for kind, (names, _) in formats.items()},
        bits_per_weight={kind: round(bits, 4) for kind, (_, bits) in formats.items()},
        kept_codes=_kept_codes(checkpoint) if formats else {},
    )


def _kept_codes(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """The kinds of weight that each target keeps, of those that are built and of those that are written."""
    kept = {name: keep_codes(checkpoint, target)[0] for name, target in TARGETS.items()}
    for name, target in CHECKPOINT_TARGETS.items():
        kept[name], _ = keep_codes(checkpoint, target, scale_dtype=checkpoint.named_dtype)
    return {name: _kinds(checkpoint.config, policy.rules if policy else ()) for name, policy in kept.items()}


def _kinds(config: ModelConfig, rules: Sequence[Rule]) -> tuple[str, ...]:
    """The kinds of the weights that some rules name."""
    names = [name for name in tensors(config) if any(rule.matches(name) for rule in rules)]
    return tuple(dict.fromkeys(map(kind_of, names)))


def _engine(path: Path) -> EngineFacts:
    manifest = load_manifest(path)
    return EngineFacts(
        path=str(path),
        generator=manifest.generator,
        target=manifest.target,
        model=ModelFacts.of(manifest.model),
        precision=dict(manifest.precision),
        bits_per_weight=round(bits_per_weight(load_graph(path, manifest), manifest.model), 4),
        max_context=manifest.max_context,
        kv_layout=manifest.kv_layout,
        kv_slots={layer.kind: layer.capacity for layer in manifest.kv_layers},
        kv_bytes_per_token=_growing_layers(manifest)
        * layer_kv_bytes(manifest.model, 1, manifest.precision["kv_cache"]),
        kv_bytes=kv_bytes(manifest.model, manifest.kv_layout, manifest.precision["kv_cache"], manifest.max_context),
        stored_codes=_stored_codes(manifest),
        adapters=_adapters(manifest),
        engines={part.engine: f"layers {part.layers[0]}:{part.layers[1]}" for part in manifest.decoder.parts},
        check={check.file: f"layers {', '.join(map(str, check.layers))}"} if (check := manifest.check) else {},
        passes=tuple(manifest.passes),
        files={name: record.bytes for name, record in manifest.files.items()},
        bytes=sum(record.bytes for record in manifest.files.values()),
    )


def _stored_codes(manifest: Manifest) -> dict[str, str]:
    """What the manifest says of codes in the checkpoint, for people."""
    found, where = {}, "the manifest: options.weights.stored_codes"
    for number, codes in enumerate(_listed(manifest, "stored_codes"), 1):
        about = Fields(codes, where, required=True)
        count, stored, outcome, reason = (
            printable(str(about.value(name, None))) for name in ("count", "stored", "outcome", "reason")
        )
        found[f"{number}: {stored}"] = f"{count} weights {outcome}{f': {reason}' if reason else ''}"
    return found


def _listed(manifest: Manifest, name: str) -> list[Any]:
    listed = manifest.options["weights"].get(name, [])
    if not isinstance(listed, list):
        raise InputError(f"the manifest: options.weights.{name} is no array; build the engine again")
    return listed


def _adapters(manifest: Manifest) -> dict[str, str]:
    """What the manifest says of adapters, for people."""
    found, where = {}, "the manifest: options.weights.adapters"
    for number, adapter in enumerate(_listed(manifest, "adapters"), 1):
        about = Fields(adapter, where, required=True)
        values = (about.value(name, None) for name in ("type", "name", "rank", "alpha", "weights"))
        kind, name, rank, alpha, count = (printable(str(value)) for value in values)
        changes = printable(", ".join(about.array("changes", str)))
        found[f"{number}: {name}"] = f"{kind}, rank {rank}, alpha {alpha}, in {count} weights: {changes}"
    return found


def _growing_layers(manifest: Manifest) -> int:
    """How many layers keep the keys and values of all tokens."""
    return sum(manifest.kv_layout != "chunked" or layer.kind == "full" for layer in manifest.kv_layers)
