"""A check graph as what it is: the decoder of a smaller model."""

from __future__ import annotations

import dataclasses

from l4export.engine.check_images import small_tiles
from l4export.engine.manifest_types import DECODER, CheckGraph, Manifest

__all__ = ["check_decoder"]


def check_decoder(manifest: Manifest, check: CheckGraph) -> Manifest:
    """The manifest of an engine that had the layers of the check graph alone: sessions run it as any other."""
    return dataclasses.replace(
        manifest,
        model=manifest.model.with_layers(check.layers),
        kv_layers=tuple(manifest.kv_layers[layer] for layer in check.layers),
        graphs={DECODER: check},
        vision=manifest.vision and small_tiles(manifest.vision),
    )
