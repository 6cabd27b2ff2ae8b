"""How good an engine is: perplexity and KL against the float reference on a text, and where the damage comes from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l4export.calibration.text import CalibrationText, TextReader, are_messages
from l4export.checkpoint import open_checkpoint
from l4export.engine.described import Described
from l4export.errors import CheckFailed, InputError
from l4export.evidence.exercised import exercised_by_images, exercised_by_length
from l4export.evidence.worst_tokens import WorstToken, worst_token
from l4export.inspection.engine_weights import open_weights
from l4export.model.tensors import parameter_count
from l4export.quality.window_logits import WindowLogits
from l4export.reference.of_engine import sliced_layers
from l4export.reference.token_scores import TokenScores, log_probabilities
from l4export.reference.transformers_model import check_reference_packages
from l4export.reports.confidence import BlockBootstrap, Interval
from l4export.reports.exercised import Exercised
from l4export.reports.sections import by_decade
from l4export.reports.verdict import Verdict, check_thresholds, missed

if TYPE_CHECKING:
    from l4export.quality.breakdown import MeasuredPart
    from l4export.reference.judged import Judged

__all__ = ["DEFAULT_WINDOW", "Damage", "QualityReport", "measure_quality"]

DEFAULT_WINDOW = 1024

_BINS = 32
_WORST = 10
_THRESHOLDS = ("kl", "perplexity_ratio", "top1_agreement")


@dataclass(frozen=True)
class Damage:
    """KL in nats a token if only one part of the engine were quantised (`l4export.quality.breakdown.MeasuredPart`)."""

    name: str
    bits_per_weight: float | None
    kl: Interval


@dataclass(frozen=True)
class QualityReport(Verdict):
    """All figures of an engine's quality. KL(reference || engine) is in nats a token.

    `perplexity` and `reference_perplexity` are exp(mean negative log likelihood). `perplexity_ratio` is their quotient.
    It has an interval of its own, because both are measured on the same tokens. `kl_by_position` has (first position,
    mean KL) for stretches of the windows, and `kl_decades` (decade, tokens): so many have a KL from 10^decade up to
    the next. `chunk_size` is the model's, or None. `together` is the KL of all `layers` and `kinds` at once, without
    rounding of activations. It is None if nothing was broken down.
    """

    engine: str
    provider: str
    reference: str
    facts: dict[str, Any]
    text: dict[str, Any]
    tokens: int
    window: int
    perplexity: Interval
    reference_perplexity: Interval
    perplexity_ratio: Interval
    kl: Interval
    kl_max: float
    top1_agreement: Interval
    together: Interval | None
    layers: tuple[Damage, ...]
    kinds: tuple[Damage, ...]
    kl_by_position: tuple[tuple[int, float], ...]
    kl_decades: tuple[tuple[int, int], ...]
    chunk_size: int | None
    worst: tuple[WorstToken, ...]
    thresholds: dict[str, float]
    exercised: tuple[Exercised, ...]
    unjudged: tuple[str, ...]
    failures: tuple[str, ...]


def measure_quality(
    engine_path: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    text_path: str | os.PathLike[str],
    window: int | None = None,
    breakdown: bool = True,
    thresholds: Mapping[str, float] | None = None,
    on_step: Callable[[str], None] | None = None,
    adapters: Sequence[Path] = (),
) -> QualityReport:
    """Run an engine and the float32 reference over a text, and compare the probabilities of every next token.

    The reference has one layer in memory at a time. The text is read in independent windows. Of conversations (a .jsonl
    file) what an assistant says is scored, each token of it given all that stands before it, images too.

    Args:
        engine_path: The engine directory, or a checkpoint that was built for other programs: transformers runs it as it
            is served, with rounded activations if it has them.
        checkpoint: The checkpoint directory that it was built from.
        text_path: A file or a directory with UTF-8 text or token ids, or a file of conversations; see
            `l4export.calibration.text.TextReader`.
        window: The number of tokens in one window; None means 1024, or the engine's `max_context` if that is less. Of
            conversations the most tokens in one; None means the engine's `max_context`.
        breakdown: Whether to measure each layer and each kind of weight too. A kind takes one more run of the
            reference, a layer half a run.
        thresholds: Upper limits for `kl` (nats a token) and `perplexity_ratio`, and a lower one for `top1_agreement`.
        on_step: Called with a line that says what is done next.
        adapters: The adapters that the engine was built with, in the same order.

    Returns:
        The figures with their 95 % confidence intervals, and the verdict. A missed threshold raises nothing.

    Raises:
        InputError: the text is not UTF-8, too short or not in the vocabulary; the window is longer than the engine's
            context; a threshold is unknown; the checkpoint has another architecture, or logits that are not finite.
        CheckFailed: the engine's logits are not finite.
        EnvironmentLacks: torch, transformers, or what runs the engine is missing.
    """
    from l4export.reference.judged import open_judged

    engine_path, checkpoint, text_path = Path(engine_path), Path(checkpoint), Path(text_path)
    limits = dict(thresholds or {})
    check_thresholds(limits, _THRESHOLDS)
    engine = open_judged(engine_path, as_served=True)
    manifest = engine.manifest
    if window is None:
        window = manifest.max_context if are_messages(text_path) else min(DEFAULT_WINDOW, manifest.max_context)
    if not 2 <= window <= manifest.max_context:
        raise InputError(f"--window {window}: this engine takes 2 to {manifest.max_context} tokens at a time")
    blind = f"{engine_path} sees none; build it from a checkpoint with a vision tower"
    text = TextReader(engine_path, manifest.model, manifest.vision, blind).windows("--text", text_path, window)
    check_reference_packages()
    from l4export.quality.breakdown import parts_of
    from l4export.reference.of_engine import check_same_tower, open_reference, reference_name

    reference = open_reference(manifest, checkpoint, adapters)
    if text.shows_images:
        check_same_tower(manifest, open_checkpoint(checkpoint))
    parts = parts_of(engine_path, manifest, (sliced_layers(manifest) or (0, 0))[0]) if breakdown else []
    run = _Run(engine, text, parts, on_step or (lambda _: None))
    run.compare(reference)
    return run.report(reference_name(checkpoint, adapters), window, limits)


class _Run:
    """One comparison: it collects the figures of each window and makes the report."""

    def __init__(
        self, engine: Judged, text: CalibrationText, parts: list[MeasuredPart], on_step: Callable[[str], None]
    ) -> None:
        self.engine, self.text, self.parts, self.on_step = engine, text, parts, on_step
        self.windows = text.windows
        if not self.windows:
            raise InputError(f"--text {text.name}: no document has two tokens, so nothing is predicted; give a text")
        self.scores: list[TokenScores] = []
        self.part_kl: list[NDArray[np.float64]] = []
        self.positions: list[NDArray[np.int64]] = []
        self.worst: list[WorstToken] = []

    def compare(self, reference: Any) -> None:
        """Compare every window."""
        from l4export.reference.variants import compare_variants

        layers, count = self.engine.config.num_hidden_layers, len(self.windows)

        def on_layer(window: int, layer: int) -> None:
            self.on_step(f"window {window + 1} of {count}, layer {layer + 1} of {layers}")

        for piece in compare_variants(reference, [part.variant for part in self.parts], self.windows, on_layer):
            window = self.windows[piece.window]
            if piece.positions[0] == window.positions[0]:
                engine = WindowLogits(self.engine, window)
            logits = engine.at(piece.positions)
            if not np.isfinite(piece.expected).all():
                raise InputError(f"the reference's logits are not finite (window {piece.window + 1}): check its files")
            if not np.isfinite(logits).all():
                raise CheckFailed(f"{self.engine.directory}: its logits are not finite (window {piece.window + 1})")
            got = log_probabilities(logits)
            following = np.asarray(window.ids)[piece.positions + 1]
            scores = TokenScores.of(piece.expected, got, following)
            self.scores.append(scores)
            self.part_kl.append(piece.kl)
            self.positions.append(piece.positions)
            for row in np.argsort(-scores.kl)[:_WORST].tolist():
                position = int(piece.positions[row])
                sides = piece.expected[row], got[row]
                self.worst.append(
                    worst_token(self.engine.text, window.ids, piece.window, position, scores.kl[row], *sides)
                )
            self.worst = sorted(self.worst, key=lambda token: -token.kl)[:_WORST]

    def exercised(self) -> tuple[Exercised, ...]:
        """What the longest window goes through, and how many images all of them show."""
        manifest, longest = self.engine.manifest, max(len(window.ids) for window in self.windows)
        images = sum(len(conversation.pictures) for conversation in self.text.conversations)
        return (*exercised_by_length(manifest, longest), exercised_by_images(manifest, images))

    def report(self, reference: str, window: int, limits: dict[str, float]) -> QualityReport:
        """Compute the figures and compare them with the thresholds."""
        scores = TokenScores.joined(self.scores)
        tokens = len(scores.kl)
        bootstrap = BlockBootstrap(tokens)
        damage = [bootstrap.mean(values) for values in np.concatenate(self.part_kl, axis=1)]
        groups: dict[str, list[Damage]] = {"all": [], "layer": [], "kind": []}
        for part, kl in zip(self.parts, damage, strict=True):
            groups[part.group].append(Damage(part.name, part.bits_per_weight, kl))
        judged = {
            "kl": bootstrap.mean(scores.kl),
            "perplexity_ratio": bootstrap.mean(scores.engine_loss - scores.reference_loss, np.exp),
            "top1_agreement": bootstrap.mean(scores.agrees),
        }
        return QualityReport(
            engine=str(self.engine.directory),
            provider=self.engine.provider,
            reference=reference,
            facts=_facts(self.engine.directory, self.engine.manifest),
            text={"name": self.text.name, **self.text.to_dict()},
            tokens=tokens,
            window=window,
            perplexity=bootstrap.mean(scores.engine_loss, np.exp),
            reference_perplexity=bootstrap.mean(scores.reference_loss, np.exp),
            kl_max=float(scores.kl.max()),
            together=groups["all"][0].kl if groups["all"] else None,
            layers=tuple(groups["layer"]),
            kinds=tuple(groups["kind"]),
            kl_by_position=_by_position(np.concatenate(self.positions), scores.kl),
            kl_decades=by_decade(scores.kl.tolist()),
            chunk_size=self.engine.config.attention_chunk_size,
            worst=tuple(self.worst),
            thresholds=limits,
            exercised=self.exercised(),
            unjudged=() if limits else ("nothing was demanded: set a threshold with --threshold NAME=VALUE",),
            failures=tuple(missed({name: figure.value for name, figure in judged.items()}, limits)),
            **judged,
        )


def _by_position(positions: NDArray[np.int64], kl: NDArray[np.float64]) -> tuple[tuple[int, float], ...]:
    """Return (first position, mean KL) of at most `_BINS` stretches of equal length."""
    width = -(-int(positions.max() + 1) // _BINS)
    counts, sums = np.bincount(positions // width), np.bincount(positions // width, kl)
    return tuple((at * width, float(sums[at] / count)) for at, count in enumerate(counts.tolist()) if count)


def _facts(engine: Path, manifest: Described) -> dict[str, Any]:
    parameters = parameter_count(manifest.model).total
    return {
        "target": manifest.target,
        "parameters": parameters,
        "layers": manifest.model.num_hidden_layers,
        **manifest.precision,
        "calibrated": "calibration" in manifest.options,
        "bits_per_weight": 8 * sum(open_weights(engine).stored_bytes().values()) / parameters,
        "bytes": sum(record.bytes for record in manifest.files.values()),
        "kv_layout": manifest.kv_layout,
        "max_context": manifest.max_context,
    }
