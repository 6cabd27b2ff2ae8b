"""Names of weights in a checkpoint, and what they tell."""

from __future__ import annotations

import re

__all__ = ["KINDS", "ROUTER", "kind_of", "layer_of", "moved_up"]

ROUTER = "feed_forward.router.weight"
"""The name of a router within its layer."""

KINDS = {
    "embedding": r"model\.embed_tokens\.weight",
    "attention q": r".*\.self_attn\.q_proj\.weight",
    "attention k": r".*\.self_attn\.k_proj\.weight",
    "attention v": r".*\.self_attn\.v_proj\.weight",
    "attention o": r".*\.self_attn\.o_proj\.weight",
    "router": r".*\.router\.weight",
    "experts gate_up": r".*\.experts\.gate_up_proj",
    "experts down": r".*\.experts\.down_proj",
    "shared expert": r".*\.shared_expert\..*",
    "dense MLP": r".*\.feed_forward\.(gate|up|down)_proj\.weight",
    "head": r"lm_head\.weight",
    "norm": r"model\.(.*)norm\.weight",
}
"""Kinds of weights in the order in which a token meets them, by their checkpoint names (without prefix). A tied head
is an embedding."""


def kind_of(name: str) -> str:
    """The kind of a weight, one of `KINDS`.

    Raises:
        ValueError: no weight of a model is called so.
    """
    for kind, pattern in KINDS.items():
        if re.fullmatch(pattern, name):
            return kind
    raise ValueError(f"{name} is no weight of a Llama 4 text model")


def layer_of(name: str) -> int | None:
    """The layer of a weight; None for the embedding, the final norm and the head."""
    match = re.match(r"model\.layers\.(\d+)\.", name)
    return int(match[1]) if match else None


def moved_up(name: str, layers: int) -> str:
    """The name of a weight whose layer has a number higher by `layers`; others have the same name everywhere."""
    return re.sub(r"^model\.layers\.(\d+)\.", lambda match: f"model.layers.{layers + int(match[1])}.", name)
