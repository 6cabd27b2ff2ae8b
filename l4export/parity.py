"""Does the engine compute what PyTorch computes? Position by position, on prefill and on decode."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.config import ModelConfig
from l4export.errors import InputError
from l4export.manifest import Manifest
from l4export.policy import Rule

__all__ = [
    "DEFAULT_THRESHOLDS",
    "LogitComparison",
    "ParityReport",
    "check_parity",
    "check_same_model",
    "chunk_boundaries",
    "compare_logits",
    "failures_of",
    "sliced_layers",
    "thresholds_for",
]

DEFAULT_THRESHOLDS: Mapping[str, float] = {
    "max_relative_difference": 1e-4,
    "kl_max": 1e-6,
    "top1_agreement": 1.0,
    "greedy_prefix": 1.0,
}
"""For engines that compute in float32. Measured differences are about 1e-6 of the largest |logit| (float32 sums in
another order), so 1e-4 leaves room for deep models and none for a wrong operation."""

_FP16_THRESHOLDS: Mapping[str, float] = {"max_relative_difference": 3e-2, "kl_max": 1e-2, "top1_agreement": 0.98}
"""float16 has 11 bits: differences of 1e-3 of a logit are normal, and a router's near tie may choose another expert."""

_INT8_ACTIVATION_THRESHOLDS: Mapping[str, float] = {"kl_mean": 5e-2}
"""Activations rounded to int8 move every product by up to 0.4 %, and a router's near tie may choose another expert:
more than float16 does, in the products or in the cache."""

_FP8_ACTIVATION_THRESHOLDS: Mapping[str, float] = {"kl_mean": 1e-3, "top1_agreement": 0.98}
"""In float32, rounded alike by both, logits agree to the bit; but what lies halfway between two codes may go either
way, and a step is up to 12 % of a value. In float16 more does so from layer to layer, and nothing can be demanded."""

_MAY_DIFFER = frozenset(
    {"max_position_embeddings", "tie_word_embeddings", "bos_token_id", "eos_token_ids", "pad_token_id"}
)
"""Fields of a config that change no logit: limits, names of tokens, and whether a head is stored once or twice."""

_AT_MOST = frozenset({"max_abs_difference", "max_relative_difference", "mean_abs_difference", "kl_mean", "kl_max"})
_AT_LEAST = frozenset({"top1_agreement", "top5_overlap", "greedy_prefix"})


@dataclass(frozen=True)
class LogitComparison:
    """How one set of logits departs from the reference's, over `positions` positions.

    `max_relative_difference` is `max_abs_difference` over the reference's largest |logit|. `kl_*` are KL(reference ||
    engine) in nats. `top1_agreement` is the share of positions with the same likeliest token; a position where they
    differ although the reference's own two candidates are nearly tied is counted in `near_ties` and not as a
    disagreement. `top5_overlap` is the mean share of common tokens among the five likeliest.
    """

    positions: int
    largest_logit: float
    max_abs_difference: float
    mean_abs_difference: float
    max_relative_difference: float
    kl_mean: float
    kl_max: float
    top1_agreement: float
    near_ties: int
    top5_overlap: float
    worst_position: int


@dataclass(frozen=True)
class ParityReport:
    """The verdict on an engine: `passed`, the figures, and the thresholds they were held against.

    `provider` is what executed the engine: an execution provider of ONNX Runtime, or TensorRT and its GPU.
    `greedy_prefix` is the share of the greedy continuation, of `greedy_tokens` tokens, before the first departure.
    With `greedy_ended_at_near_tie` that departure was between two nearly tied tokens, which is no failure, but nothing
    can be said of the tokens after it.
    """

    engine: str
    provider: str
    reference: str
    prefill_tokens: int
    decode_tokens: int
    chunk_boundaries: int
    prefill: LogitComparison
    decode: LogitComparison | None
    greedy_tokens: int
    greedy_prefix: float
    greedy_ended_at_near_tie: bool
    thresholds: dict[str, float]
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every threshold was met."""
        return not self.failures

    def to_json(self) -> str:
        """The report as a JSON document."""
        return json.dumps({"passed": self.passed, **dataclasses.asdict(self)}, indent=1)


def compare_logits(
    reference: NDArray[np.float32], engine: NDArray[np.float32], accepted: float = 1e-4
) -> LogitComparison:
    """Compare logits float32 [positions, vocab]; differences and KL in float64.

    `accepted` is the largest difference, as a share of the largest |logit|, that is no fault. Two logits are nearly
    tied when they lie within twice of that: each may move by as much, and the argmax then swaps without a fault.

    Raises:
        InputError: shapes differ, or the engine's logits are not finite (a NaN compares as equal to nothing).
    """
    if reference.shape != engine.shape:
        raise InputError(f"logits of shape {list(engine.shape)} against {list(reference.shape)}: not comparable")
    if not np.isfinite(engine).all():
        at = int(np.argwhere(~np.isfinite(engine))[0][0])
        raise InputError(f"the engine's logits at position {at} are not finite: it was built or loaded wrong")
    difference = np.abs(reference.astype(np.float64) - engine)
    largest = float(np.abs(reference).max())
    kl = np.asarray([_kl(*pair) for pair in zip(reference, engine, strict=True)])
    top = reference.argmax(axis=1), engine.argmax(axis=1)
    rows = np.arange(len(reference))
    gap = reference[rows, top[0]] - reference[rows, top[1]]
    swapped = top[0] != top[1]
    near = swapped & (gap <= 2 * accepted * largest)
    count = min(5, reference.shape[1])
    return LogitComparison(
        positions=len(reference),
        largest_logit=largest,
        max_abs_difference=float(difference.max()),
        mean_abs_difference=float(difference.mean()),
        max_relative_difference=float(difference.max() / largest) if largest else float(difference.max()),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        top1_agreement=float(1 - (swapped & ~near).mean()),
        near_ties=int(near.sum()),
        top5_overlap=float(np.mean([_overlap(*pair, count) for pair in zip(reference, engine, strict=True)])),
        worst_position=int(difference.max(axis=1).argmax()),
    )


def check_parity(
    engine_path: Path,
    checkpoint: Path,
    prefill: int = 64,
    decode: int = 32,
    thresholds: Mapping[str, float] | None = None,
    seed: int = 0,
    dequantized: bool = False,
    on_step: Callable[[str], None] | None = None,
    provider: str | None = None,
) -> ParityReport:
    """Run engine and reference on the same tokens and compare.

    `prefill` seeded random tokens in one append, then `decode` further ones, one a call (teacher-forced), then a
    greedy continuation of the prefill of `decode` tokens. `thresholds` override `DEFAULT_THRESHOLDS` by name. An
    engine that was built of a slice of the layers is compared with the same slice of the reference.

    A quantised engine is judged twice: against the checkpoint's weights (its quality; nothing is demanded unless
    `thresholds` say so), and with `dequantized` against a reference that uses the engine's own weights, dequantised:
    that one is tight where activations are not rounded to int8 (to fp8 the reference rounds them too).
    `provider` as `l4export.runtimes.load`.

    Raises:
        InputError: lengths beyond the engine's context, unknown thresholds, an engine of another architecture.
        EnvironmentLacks: torch, transformers or onnxruntime is missing.
    """
    from l4export import runtimes
    from l4export.hf_reference import HFReference

    say = on_step or (lambda _: None)
    say("loading the engine")
    engine = runtimes.load(engine_path, provider=provider)
    manifest = engine.manifest
    limits = thresholds_for(manifest, thresholds or {}, prefill, decode, dequantized)
    say("loading the reference")
    reference = HFReference(checkpoint, sliced_layers(manifest))
    check_same_model(checkpoint, reference.config, manifest.model)
    if dequantized:
        from l4export.dequantized import dequantized_weights, input_scales

        reference.replace(dequantized_weights(engine_path))
        reference.round_inputs(input_scales(engine_path))
    ids = np.random.default_rng(seed).integers(0, engine.config.vocab_size, prefill + decode, dtype=np.int64)
    say("running the reference")
    expected = reference.logits(ids[None])[0]
    say("running the engine")
    session = engine.session(capacity=prefill + decode)
    prefilled = session.append(ids[:prefill])[0]
    decoded = [session.append(ids[at : at + 1])[0] for at in range(prefill, prefill + decode)]
    say("comparing greedy continuations")
    accepted = limits.get("max_relative_difference", DEFAULT_THRESHOLDS["max_relative_difference"])
    matched, tied = _greedy_prefix(engine, reference, ids[:prefill].tolist(), decode, accepted)
    report = ParityReport(
        engine=str(engine_path),
        provider=engine.provider,
        reference=f"{checkpoint}{', dequantised weights' if dequantized else ''}",
        prefill_tokens=prefill,
        decode_tokens=decode,
        chunk_boundaries=chunk_boundaries(engine.config, prefill + decode),
        prefill=compare_logits(expected[:prefill], prefilled, accepted),
        decode=compare_logits(expected[prefill:], np.concatenate(decoded), accepted) if decode else None,
        greedy_tokens=decode,
        greedy_prefix=matched / decode if decode else 1.0,
        greedy_ended_at_near_tie=tied,
        thresholds=limits,
        failures=(),
    )
    return dataclasses.replace(report, failures=tuple(_failures(report)))


def thresholds_for(
    manifest: Manifest, given: Mapping[str, float], prefill: int, decode: int, dequantized: bool
) -> dict[str, float]:
    """What is demanded of an engine: the thresholds of its precision, or those that are `given` in their place.

    Raises:
        InputError: unknown thresholds; more tokens than the engine takes, or none to begin with.
    """
    _check_thresholds(given)
    if prefill < 1 or decode < 0 or prefill + decode > manifest.max_context:
        raise InputError(
            f"--prefill {prefill} --decode {decode}: together at least 1 token of prefill and at most the engine's "
            f"max_context of {manifest.max_context}"
        )
    return {**_default_thresholds(manifest, dequantized), **given}


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


def _default_thresholds(manifest: Manifest, dequantized: bool) -> Mapping[str, float]:
    kv_cache = manifest.precision["kv_cache"]
    if (manifest.precision["quant"] != "none" and not dequantized) or kv_cache in ("int8", "int4"):
        return {}
    if manifest.precision["activations"] == "fp8":
        return _FP8_ACTIVATION_THRESHOLDS if manifest.precision["compute"] == "fp32" else {}
    if manifest.precision["quant"] != "none" and _rounds_activations(manifest):
        return _INT8_ACTIVATION_THRESHOLDS
    in_float32 = manifest.precision["compute"] == kv_cache == "fp32"
    return DEFAULT_THRESHOLDS if in_float32 else _FP16_THRESHOLDS


def _rounds_activations(manifest: Manifest) -> bool:
    """Whether ONNX Runtime rounds activations to int8: at accuracy level 4, and before int8 experts at any level."""
    if manifest.target != "ort-cpu":
        return False
    policy = manifest.options["policy"]
    experts = [f"model.layers.{layer}.feed_forward.experts.down_proj" for layer in manifest.model.moe_layers]
    integers = [rule for rule in policy["rules"] if rule["kind"] != "fp8"]
    at_8_bits = [Rule(tuple(r["weights"]), "int8", but=tuple(r["but"])) for r in integers if r["kind"] == "int8"]
    int8_experts = any(rule.matches(name) for rule in at_8_bits for name in experts)
    return bool(integers) and (policy["accuracy_level"] == 4 or int8_experts)


def sliced_layers(manifest: Manifest) -> tuple[int, int] | None:
    """The slice (start, stop) of the checkpoint's layers that the engine was built of; None for all of them."""
    match manifest.options.get("layers"):
        case None:
            return None
        case [int(start), int(stop)]:
            return start, stop
    raise InputError("the manifest's option 'layers' is not [first, last + 1]; build the engine again")


def _greedy_prefix(engine: Any, reference: Any, prompt: list[int], count: int, accepted: float) -> tuple[int, bool]:
    """How many greedy tokens agree before the first that does not, and whether that one was a near tie."""
    if count == 0:
        return 0, False
    expected = reference.greedy(prompt, count)
    given = list(engine.generate(prompt, max_new_tokens=count, stop_token_ids=()))
    for at, (want, got) in enumerate(zip(expected, given, strict=True)):
        if want != got:
            logits = reference.logits(np.asarray([prompt + expected[:at]]))[0, -1]
            return at, bool(logits[want] - logits[got] <= 2 * accepted * np.abs(logits).max())
    return count, False


def chunk_boundaries(config: Any, tokens: int) -> int:
    """Chunk boundaries between the first token and the last; a comparison without any proves nothing of chunking."""
    return (tokens - 1) // config.attention_chunk_size if any(config.chunked_layers) else 0


def _failures(report: ParityReport) -> list[str]:
    failures = failures_of("prefill", report.prefill, report.thresholds)
    if report.decode is not None:
        failures += failures_of("decode", report.decode, report.thresholds)
    wanted = report.thresholds.get("greedy_prefix", 0.0)
    if report.greedy_prefix < wanted and not report.greedy_ended_at_near_tie:
        failures.append(f"greedy_prefix {report.greedy_prefix:.3g}, threshold {wanted:g}")
    return failures


def failures_of(phase: str, figures: LogitComparison, thresholds: Mapping[str, float]) -> list[str]:
    """Which thresholds the logits of a phase miss, in words."""
    failures = []
    for name, limit in thresholds.items():
        value = getattr(figures, name, None)
        if value is not None and not (value <= limit if name in _AT_MOST else value >= limit):
            failures.append(f"{phase} {name} {value:.3g}, threshold {limit:g}")
    return failures


def _check_thresholds(thresholds: Mapping[str, float]) -> None:
    known = sorted(_AT_MOST | _AT_LEAST)
    for name, value in thresholds.items():
        if name not in known:
            raise InputError(f"--threshold {name}: not one of {', '.join(known)}")
        if not np.isfinite(value) or value < 0:
            raise InputError(f"--threshold {name}={value}: give a finite number of 0 or more")


def _kl(reference: NDArray[np.float32], engine: NDArray[np.float32]) -> float:
    """KL(softmax(reference) || softmax(engine)) in nats, never below 0 by rounding."""
    p, q = _log_softmax(reference), _log_softmax(engine)
    return max(0.0, float(np.sum(np.exp(p) * (p - q))))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - float(logits.max())
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def _overlap(reference: NDArray[np.float32], engine: NDArray[np.float32], count: int) -> float:
    best = [set(np.argsort(-logits, kind="stable")[:count].tolist()) for logits in (reference, engine)]
    return len(best[0] & best[1]) / count
