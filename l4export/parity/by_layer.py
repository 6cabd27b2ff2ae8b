"""Where an engine departs from PyTorch, layer by layer, for models of any size."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from l4export.engine.checkpoint_manifest import is_written_checkpoint
from l4export.engine.manifest import Manifest, Runtime, load_manifest
from l4export.errors import CheckFailed, InputError
from l4export.evidence.exercised import chunk_boundaries
from l4export.inspection.dequantized_weights import DequantizedWeights
from l4export.inspection.taps import tap_engine
from l4export.parity.image_prompt import Pictures, are_given, image_prompt
from l4export.parity.images import ImageComparison, compare_seen
from l4export.parity.layers import LayerComparison, LayerWalk, layer_limits
from l4export.parity.logits import LogitComparison, compare_logits, failures_of
from l4export.parity.positions import PositionFigures, position_figures
from l4export.parity.thresholds import Demands
from l4export.parity.tower import TowerComparison, compare_towers
from l4export.parity.verdict import exercised, unjudged
from l4export.reference.of_engine import open_reference, reference_name, sliced_layers
from l4export.reports.exercised import Exercised
from l4export.reports.verdict import Verdict
from l4export.runtimes.images.image_features import ImageFeatures
from l4export.runtimes.onnxruntime.engine import vision_tower
from l4export.runtimes.random_text import random_text
from l4export.runtimes.text.codec import TextCodec

__all__ = ["LayerParityReport", "check_layers"]


@dataclass(frozen=True)
class LayerParityReport(Verdict):
    """The verdict, layer by layer.

    `first_departure` is the checkpoint's number of the first layer that misses a threshold, or None. `images` says what
    the engine sees in the prompt's images, and `tower` what its vision tower computes of them, stage by stage; both are
    None if there were none. `layer_thresholds` are those of the figures of `LayerComparison`. The
    rest is as in `l4export.parity.whole_model.ParityReport`.
    """

    engine: str
    provider: str
    reference: str
    seed: int
    prefill_tokens: int
    decode_tokens: int
    chunk_size: int | None
    chunk_boundaries: int
    layers: tuple[LayerComparison, ...]
    logits: LogitComparison
    positions: PositionFigures
    thresholds: dict[str, float]
    layer_thresholds: dict[str, float]
    first_departure: int | None
    images: ImageComparison | None
    tower: TowerComparison | None
    exercised: tuple[Exercised, ...]
    unjudged: tuple[str, ...]
    failures: tuple[str, ...]


def check_layers(
    engine_path: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    prefill: int = 64,
    decode: int = 32,
    thresholds: Mapping[str, float] | None = None,
    seed: int = 0,
    dequantized: bool = False,
    on_step: Callable[[str], None] | None = None,
    images: Pictures = (),
    adapters: Sequence[Path] = (),
) -> LayerParityReport:
    """Run an engine and the float32 reference on the same tokens, and compare the results of every layer.

    The engine runs with more outputs: for every layer its hidden states [tokens, hidden], its keys and values, and its
    router's logits [tokens, experts]. The reference has one layer in memory at a time, and computes all positions in
    one pass. The threshold `max_relative_difference` applies to every layer's hidden states, keys and values and to the
    logits; `top1_agreement` applies to every layer's choice of experts and to the logits. With `images` the vision
    tower is compared too, tile by tile; `feature_difference` applies to each of its stages.

    The arguments are those of `check_parity`.

    Raises:
        InputError: the tokens exceed the engine's context; a threshold is unknown; the engine has another architecture
            or is not for a CPU, or is a checkpoint; the reference's logits are not finite.
        CheckFailed: the engine's logits or features are not finite; if a layer departs, it is named.
        EnvironmentLacks: torch, transformers or onnxruntime is missing.
    """
    engine_path, checkpoint = Path(engine_path), Path(checkpoint)
    if is_written_checkpoint(engine_path):
        raise InputError(f"--stream: {engine_path} is a checkpoint, which transformers runs as a whole; leave it out")
    say = on_step or (lambda _: None)
    manifest = load_manifest(engine_path)
    _check_comparable(engine_path, manifest, thresholds or {})
    demands = Demands.of(manifest, thresholds or {}, prefill, decode, dequantized, are_given(images))
    demands = demands.without("greedy_prefix")
    prompt = image_prompt(engine_path, manifest, images, prefill, decode, seed) if are_given(images) else None
    ids = random_text(manifest, prefill + decode, seed) if prompt is None else prompt.ids
    prefill, shown = len(ids) - decode, None if prompt is None else prompt.images
    say("opening the reference")
    replaced = DequantizedWeights(engine_path).rows if dequantized else None
    reference = open_reference(manifest, checkpoint, adapters, replaced)
    hidden, seen, tower, stages = reference.embed(ids[None]), None, None, None
    if prompt is not None:
        say("comparing the vision tower, stage by stage")
        limit, tiles = demands.thresholds.get("feature_difference"), prompt.images.tiles
        stages, features = compare_towers(engine_path, manifest, checkpoint, tiles, limit, adapters)
        if stages.failures and not np.isfinite(stages.stages[-1].difference):
            raise CheckFailed(f"{engine_path}: not at parity: {stages.failures[0]}; its features are not finite")
        say("comparing what is seen")
        tower = ImageFeatures(vision_tower(engine_path, manifest).features)
        seen = compare_seen(tower, checkpoint, prompt, features)
        demands = demands.of_compared(seen.processor.not_compared, thresholds or {})
        hidden[0, ids == prompt.tokens.patch] = features
    say("running the engine")
    engine = tap_engine(engine_path, manifest, [ids[:prefill], *ids[prefill:, None]], shown, tower)
    say(f"comparing {manifest.model.num_hidden_layers} layers")
    walk = LayerWalk(reference, engine, demands, first=(sliced_layers(manifest) or (0, 0))[0])
    compared, hidden = walk.compare(hidden, lambda layer: say(f"compared layer {layer}"))
    limits = layer_limits(demands)
    departed = [(item.layer, found) for item in compared if (found := item.departures(limits))]
    ties = sum(item.near_ties or 0 for item in compared)
    failures = [f"layer {layer} is the first to depart: {', '.join(found)}" for layer, found in departed[:1]]
    if failures and not np.isfinite(engine.logits).all():
        raise CheckFailed(f"{engine_path}: not at parity: {failures[0]}; in the end its logits are not finite")
    expected = reference.logits(hidden)[0]
    logits = compare_logits(expected, engine.logits, demands.accepted)
    return LayerParityReport(
        engine=str(engine_path),
        provider="CPUExecutionProvider",
        reference=reference_name(
            checkpoint, adapters, *(["dequantised weights"] if dequantized else []), "layer by layer"
        ),
        seed=seed,
        prefill_tokens=prefill,
        decode_tokens=decode,
        chunk_size=manifest.model.attention_chunk_size,
        chunk_boundaries=chunk_boundaries(manifest.model, prefill + decode),
        layers=tuple(compared),
        logits=logits,
        positions=position_figures(expected, engine.logits, ids, TextCodec.open(engine_path)),
        thresholds=demands.thresholds,
        layer_thresholds=limits,
        first_departure=departed[0][0] if departed else None,
        images=seen,
        tower=stages,
        exercised=exercised(manifest, prefill, decode, seen, demands, ties, None),
        unjudged=unjudged(manifest, demands, prefill + decode),
        failures=(
            *(stages.failures if stages else ()),
            *(seen.failures(demands.thresholds) if seen else ()),
            *failures,
            *failures_of("logits", logits, demands.thresholds),
        ),
    )


def _check_comparable(engine: Path, manifest: Manifest, thresholds: Mapping[str, float]) -> None:
    """Refuse an engine or a threshold that cannot be compared layer by layer."""
    if manifest.decoder.runtime != Runtime("onnxruntime", "cpu"):
        raise InputError(
            f"--stream: layers are compared on ONNX Runtime's CPU, and {engine} is for {manifest.target}: "
            "build one with --target ort-cpu or onnx"
        )
    if "greedy_prefix" in thresholds:
        raise InputError("--threshold greedy_prefix: nothing is generated with --stream; leave one of them out")
    if manifest.precision["activations"] == "fp8":
        raise InputError("--stream: the reference rounds no activations layer by layer; leave it out for this engine")
