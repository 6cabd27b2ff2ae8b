"""What a comparison of tokens went through, and whether passing it proves anything."""

from __future__ import annotations

from l4export.engine.described import Described
from l4export.evidence.exercised import (
    chunk_boundaries,
    chunks_are_in_reach,
    exercised_by_images,
    exercised_by_length,
)
from l4export.parity.image_thresholds import IMAGE_FIGURES
from l4export.parity.images import ImageComparison
from l4export.parity.thresholds import Demands
from l4export.reports.exercised import Exercised

__all__ = ["exercised", "unjudged"]


def exercised(
    manifest: Described,
    prefill: int,
    decode: int,
    images: ImageComparison | None,
    demands: Demands,
    ties: int,
    greedy: int | None,
) -> tuple[Exercised, ...]:
    """What a comparison of `prefill` tokens at once and `decode` single ones went through.

    `ties` counts the nearly tied choices of experts in which the reference followed the engine, and `greedy` the tokens
    of the greedy continuation, which is None where there is no such comparison.
    """
    chunks, temperature = exercised_by_length(manifest, prefill + decode)
    crossed = chunk_boundaries(manifest.model, prefill + decode) - chunk_boundaries(manifest.model, prefill)
    decoding = "chunk boundaries while decoding"
    return (
        chunks,
        Exercised(decoding, "not applicable", chunks.how)
        if chunks.status == "not applicable"
        else Exercised.counted(decoding, crossed, f"{crossed} crossed", "none was crossed by single tokens"),
        temperature,
        Exercised.counted("decoding", decode, f"{decode} tokens, one a call", "no token was fed by itself"),
        Exercised("greedy continuation", "not applicable", "layers are compared on given tokens")
        if greedy is None
        else Exercised.counted("greedy continuation", greedy, f"{greedy} tokens", "nothing was generated"),
        _followed(manifest, demands, ties),
        exercised_by_images(manifest, len(images.grids) if images else 0),
    )


def _followed(manifest: Described, demands: Demands, ties: int) -> Exercised:
    what = "nearly tied experts"
    if not manifest.model.moe_layers:
        return Exercised(what, "not applicable", "there is no router")
    if demands.tied is None:
        return Exercised(what, "not exercised", "other choices count as differences here, and are not followed")
    return Exercised.counted(what, ties, f"the reference followed {ties} of the engine's choices", "none was followed")


def unjudged(manifest: Described, demands: Demands, tokens: int) -> tuple[str, ...]:
    """Why meeting all thresholds on so many tokens would prove nothing; empty if it does prove something.

    Thresholds of what an engine sees judge its vision tower alone.
    """
    reasons = []
    if not set(demands.thresholds) - set(IMAGE_FIGURES):
        reasons.append(
            "nothing is demanded of its logits, because what quantisation costs has no threshold of its own: set one "
            "with --threshold NAME=VALUE"
        )
    if chunks_are_in_reach(manifest) and not chunk_boundaries(manifest.model, tokens):
        reasons.append(
            f"no chunk boundary was crossed, so chunked attention was not tested: give more than "
            f"{manifest.model.attention_chunk_size} tokens with --prefill and --decode"
        )
    return tuple(reasons)
