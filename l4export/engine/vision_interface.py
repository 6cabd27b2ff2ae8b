"""What a vision tower takes and gives, and what a manifest must say of an engine that sees images."""

from __future__ import annotations

from collections.abc import Iterator

from l4export.engine.kv_cache import KV_STORAGE
from l4export.engine.manifest_types import VISION, EnginePart, Graph, InputSpec, Manifest, TensorSpec

__all__ = ["TILES_PER_CALL", "tower_contradictions"]

TILES_PER_CALL = (1, 5, 17)
"""Tiles in a call of a compiled tower: the least, the likeliest and the most. An image has 17 at most, unless its
processor is set otherwise; more tiles are more calls, with the same numbers."""


def tower_contradictions(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield fields that contradict each other, and what is wrong with them; only the first should be read."""
    tower, path = manifest.graphs.get(VISION), f"graphs.{VISION}"
    claims = {
        "requires": VISION in manifest.requires,
        f"precision.{VISION}": VISION in manifest.precision,
        path: tower is not None,
    }
    for field, claimed in claims.items():
        if claimed != (manifest.vision is not None):
            yield field, f"{'has' if claimed else 'lacks'} {VISION}, which the manifest {'lacks' if claimed else 'has'}"
    if manifest.vision is None or tower is None:
        return
    if (token := manifest.vision.image_token_id) >= manifest.model.vocab_size:
        yield f"{VISION}.image_token_id", f"is {token}, outside the vocabulary of {manifest.model.vocab_size} tokens"
    yield from _interface(manifest, tower, path)
    for index, profile in enumerate(tower.profiles):
        if "tiles" not in profile:
            yield f"{path}.profiles[{index}].tiles", "is missing"
    if len(tower.parts) > 1:
        yield f"{path}.parts", "are several; a tower is one engine"


def _interface(manifest: Manifest, tower: Graph, path: str) -> Iterator[tuple[str, str]]:
    assert manifest.vision is not None
    side, dtype = manifest.vision.image_size, KV_STORAGE[manifest.precision["compute"]].dtype
    inputs = (InputSpec("pixel_values", "float32", ("tiles", 3, side, side), optional=False),)
    outputs = (TensorSpec("image_features", dtype, ("rows", manifest.model.hidden_size)),)
    compiled = [(part, f"{path}.parts[{index}]") for index, part in enumerate(tower.parts)]
    everything: list[tuple[Graph | EnginePart, str]] = [(tower, path), *compiled]
    for declared, where in everything:
        for field, told, expected in (("inputs", declared.inputs, inputs), ("outputs", declared.outputs, outputs)):
            if told != expected:
                only = expected[0]
                yield f"{where}.{field}", f"are not {only.name} alone, {only.dtype} {list(only.shape)}"
