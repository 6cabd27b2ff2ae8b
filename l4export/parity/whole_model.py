"""Whether an engine computes what PyTorch computes, position by position, on prefill and on decode."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from l4export.evidence.exercised import chunk_boundaries
from l4export.parity.image_prompt import Pictures, are_given, image_prompt
from l4export.parity.images import ImageComparison, compare_images
from l4export.parity.logits import LogitComparison, compare_logits, departing, failures_of
from l4export.parity.positions import PositionFigures, position_figures
from l4export.parity.thresholds import Demands
from l4export.parity.verdict import exercised, unjudged
from l4export.reference.of_engine import load_reference, reference_name
from l4export.reference.routing_ties import follow_ties
from l4export.reports.exercised import Exercised
from l4export.reports.verdict import Verdict, missed
from l4export.runtimes.random_text import random_text

if TYPE_CHECKING:
    from l4export.reference.judged import Judged
    from l4export.reference.transformers_model import HFReference
    from l4export.runtimes.images.processor import ProcessedImages

__all__ = ["ParityReport", "check_parity"]


@dataclass(frozen=True)
class ParityReport(Verdict):
    """The verdict on an engine, the figures, and the thresholds that they were compared with.

    `provider` is what executed the engine: an execution provider of ONNX Runtime, or TensorRT and its GPU.
    `routing_ties` counts the nearly tied choices of experts in which the reference followed the engine
    (`l4export.reference.routing_ties`), in prefill and decode together. `greedy_prefix` is the share of the greedy
    continuation, of `greedy_tokens` tokens, before the first departure. If `greedy_ended_at_near_tie` is true, the
    departure was between two nearly tied tokens. This is no failure, but nothing can be said about the tokens after it.
    `images` says what the engine sees in the prompt's images; it is None if there were none. `chunk_size`
    is the model's, or None, and `positions` has figures of every position.
    """

    engine: str
    provider: str
    reference: str
    seed: int
    prefill_tokens: int
    decode_tokens: int
    chunk_size: int | None
    chunk_boundaries: int
    images: ImageComparison | None
    prefill: LogitComparison
    decode: LogitComparison | None
    positions: PositionFigures
    routing_ties: int
    greedy_tokens: int
    greedy_prefix: float
    greedy_ended_at_near_tie: bool
    thresholds: dict[str, float]
    exercised: tuple[Exercised, ...]
    unjudged: tuple[str, ...]
    failures: tuple[str, ...]


def check_parity(
    engine_path: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    prefill: int = 64,
    decode: int = 32,
    thresholds: Mapping[str, float] | None = None,
    seed: int = 0,
    dequantized: bool = False,
    on_step: Callable[[str], None] | None = None,
    provider: str | None = None,
    images: Pictures = (),
    adapters: Sequence[Path] = (),
) -> ParityReport:
    """Run an engine and the float32 reference on the same tokens, and compare their logits [tokens, vocab].

    Both run `prefill` tokens at once, then `decode` further ones, one a call (teacher-forced), and then continue the
    prefill greedily by `decode` tokens. An engine of some layers is compared with the same layers of the reference.

    A quantised engine can be compared in two ways. Compared with the checkpoint's weights, the figures show its
    quality, and no threshold applies unless `thresholds` has one. With `dequantized`, the reference has the engine's
    own weights, dequantised, and the figures show whether the engine computes right. They are small unless activations
    are rounded to int8. (Where an engine rounds them to fp8, the reference does too.)

    With images the prompt has them between its `prefill` tokens of text, each with the tokens that stand for it. The
    reference's vision tower is given the engine's own pixel values. These, and the ids of a prompt, are compared with
    those of transformers' processor if it can be run here; the report says if not.

    Args:
        engine_path: The engine directory, or a checkpoint that was built for other programs, which transformers runs.
        checkpoint: The checkpoint directory that it was built from.
        prefill: The number of tokens of text fed in one call, at least 1.
        decode: The number of tokens fed one by one. prefill + decode is at most the engine's `max_context`.
        thresholds: Limits by name. They replace the defaults for the engine's precision.
        seed: The seed of the random tokens.
        dequantized: Whether the reference has the engine's own weights.
        on_step: Called with a line that says what is done next.
        provider: As for `l4export.load`.
        images: Images as `l4export.runtimes.images` takes them, or "seeded": three pictures that the seed makes.
        adapters: The adapters that the engine was built with, in the same order.

    Returns:
        The figures and the verdict. A failed comparison raises nothing.

    Raises:
        InputError: the tokens exceed the engine's context; a threshold is unknown; the engine has another architecture;
            there are images and no vision tower, in the engine or in the checkpoint; the reference's logits are not
            finite.
        CheckFailed: the engine's logits or features are not finite, so nothing can be compared.
        EnvironmentLacks: torch, transformers, or what runs the engine is missing, or what a given threshold needs.
        StorageError: an image cannot be read.
    """
    from l4export.reference.judged import open_judged

    engine_path, checkpoint = Path(engine_path), Path(checkpoint)
    say = on_step or (lambda _: None)
    say("loading the engine")
    engine = open_judged(engine_path, provider)
    demands = Demands.of(engine.manifest, thresholds or {}, prefill, decode, dequantized, are_given(images))
    prompt = image_prompt(engine_path, engine.manifest, images, prefill, decode, seed) if are_given(images) else None
    ids = random_text(engine.manifest, prefill + decode, seed) if prompt is None else prompt.ids
    prefill, shown = len(ids) - decode, None if prompt is None else prompt.images
    seen, features = None, None
    if prompt is not None:
        say("comparing what is seen")
        seen, features = compare_images(engine.manifest, engine.features, checkpoint, prompt, adapters)
        demands = demands.of_compared(seen.processor.not_compared, thresholds or {})
    say("loading the reference")
    reference = load_reference(engine.manifest, checkpoint, adapters, engine_path if dequantized else None)
    if prompt is not None and features is not None:
        reference.see(features, prompt.tokens.patch)
    say("running the engine")
    given = _engine_logits(engine, ids, prefill, shown)
    say("running the reference")
    follow = _Following(reference, demands, say)
    expected, ties = follow(ids, given, prefill)
    say("comparing greedy continuations")
    greedy = _compare_greedy(engine, ids[:prefill].tolist(), decode, follow, shown)
    phases = {"prefill": slice(0, prefill), **({"decode": slice(prefill, None)} if decode else {})}
    compared = {name: compare_logits(expected[at], given[at], demands.accepted) for name, at in phases.items()}
    return ParityReport(
        engine=str(engine_path),
        provider=engine.provider,
        reference=reference_name(checkpoint, adapters, *(["dequantised weights"] if dequantized else [])),
        seed=seed,
        prefill_tokens=prefill,
        decode_tokens=decode,
        chunk_size=engine.config.attention_chunk_size,
        chunk_boundaries=chunk_boundaries(engine.config, prefill + decode),
        images=seen,
        prefill=compared["prefill"],
        decode=compared.get("decode"),
        positions=position_figures(expected, given, ids, engine.text),
        routing_ties=ties,
        greedy_tokens=decode,
        greedy_prefix=greedy.share,
        greedy_ended_at_near_tie=greedy.near_tie,
        thresholds=demands.thresholds,
        exercised=exercised(engine.manifest, prefill, decode, seen, demands, ties, decode),
        unjudged=(
            *unjudged(engine.manifest, demands, prefill + decode),
            *greedy.unjudged(thresholds or {}),
        ),
        failures=(
            *(seen.failures(demands.thresholds) if seen else ()),
            *(words for name, figures in compared.items() for words in failures_of(name, figures, demands.thresholds)),
            *greedy.failures(demands.thresholds),
        ),
    )


def _engine_logits(
    engine: Judged, ids: NDArray[np.int64], prefill: int, images: ProcessedImages | None
) -> NDArray[np.float32]:
    """Return logits float32 [T, vocab]. The first `prefill` tokens are fed in one call, the others one by one."""
    session = engine.session(capacity=len(ids))
    first = session.append(ids[:prefill], images=images)[0]
    return np.concatenate([first, *(session.step([token]) for token in ids[prefill:].tolist())])


@dataclass(frozen=True)
class _Following:
    """The reference's logits. The reference follows the engine where experts are nearly tied (`Demands.tied`)."""

    reference: HFReference
    demands: Demands
    say: Callable[[str], None]

    def __call__(
        self, ids: NDArray[np.int64], given: NDArray[np.float32], prefill: int
    ) -> tuple[NDArray[np.float32], int]:
        """Return logits [T, vocab] for ids [T], for which the engine's logits are `given`, and the number of ties."""
        if self.demands.tied is None:
            return self.reference.logits(ids[None])[0], 0

        def departs(expected: NDArray[np.float32]) -> NDArray[np.bool_]:
            phases = [slice(0, prefill), slice(prefill, None)][: 1 + (prefill < len(ids))]
            limits = self.demands.thresholds
            return np.concatenate([departing(expected[phase], given[phase], limits) for phase in phases])

        count = self.reference.config.num_experts_per_tok
        found = follow_ties(self.reference, ids, departs, count, self.demands.tied, self._tell)
        return found.logits, len(found.swapped)

    def _tell(self, ties: int) -> None:
        self.say(f"running the reference, with {ties} nearly tied choices of experts as in the engine")


@dataclass(frozen=True)
class _Greedy:
    """The share of a greedy continuation before the first departure, and whether that was between nearly tied tokens.

    Nothing can be said about the tokens after it.
    """

    share: float
    near_tie: bool

    def failures(self, thresholds: Mapping[str, float]) -> list[str]:
        """Describe the threshold if it is missed, and not for a near tie."""
        return [] if self.near_tie else missed({"greedy_prefix": self.share}, thresholds)

    def unjudged(self, given: Mapping[str, float]) -> list[str]:
        """Say so if a near tie is why a threshold that a person has given is not reached."""
        if not self.near_tie or not missed({"greedy_prefix": self.share}, given):
            return []
        return [
            f"the greedy continuation ended at a near tie after {self.share:.4g} of it, so greedy_prefix could not be "
            "compared: choose another --seed"
        ]


def _compare_greedy(
    engine: Judged, prompt: list[int], count: int, follow: _Following, images: ProcessedImages | None
) -> _Greedy:
    """Compare greedy continuations of `count` tokens by the engine and by the reference."""
    if count == 0:
        return _Greedy(1.0, near_tie=False)
    expected = follow.reference.greedy(prompt, count)
    given = list(engine.generate(prompt, max_new_tokens=count, stop_token_ids=(), images=images))
    for at, (want, got) in enumerate(zip(expected, given, strict=True)):
        if want != got:
            ids = np.asarray(prompt + expected[:at])
            logits = follow(ids, _engine_logits(engine, ids, len(prompt), images), len(prompt))[0][-1]
            near = logits[want] - logits[got] <= 2 * follow.demands.accepted * np.abs(logits).max()
            return _Greedy(at / count, bool(near))
    return _Greedy(1.0, near_tie=False)
