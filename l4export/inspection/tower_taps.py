"""An engine's vision tower that shows what it has inside: its own graph, with what every stage makes as an output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import VISION, Manifest
from l4export.errors import InputError
from l4export.graph.contents import LayerValue, layer_values
from l4export.inspection.graph_file import load_graph
from l4export.inspection.taps import TappedInference
from l4export.model.vision_config import VisionConfig

__all__ = ["TappedTower", "tower_stages"]


def tower_stages(config: VisionConfig) -> dict[str, LayerValue | None]:
    """What a tower computes, in this order: a stage's name, and which value it makes; None is the tower's output."""
    layers, last = config.num_hidden_layers, config.num_hidden_layers - 1
    return {
        "embedding": LayerValue("embedded", 0),
        **{f"layer {layer}": LayerValue("residual", layer) for layer in range(layers)},
        "pixel shuffle": LayerValue("shuffled", last),
        "adapter": LayerValue("adapted", last),
        "projector": None,
    }


class TappedTower:
    """The tower of an engine that has one, on the CPU. The graph is changed in memory alone.

    Raises:
        EnvironmentLacks: onnxruntime is not installed.
        InputError: a graph without these values, or one that ONNX Runtime cannot load.
    """

    def __init__(self, engine: Path, manifest: Manifest) -> None:
        assert manifest.vision is not None
        model = load_graph(engine, manifest, manifest.graphs[VISION])
        values = layer_values(model.graph)
        self._names: dict[str, str | None] = {}
        for stage, made in tower_stages(manifest.vision).items():
            if made is not None and made not in values:
                raise InputError(f"{engine}: the vision tower has no value of its {stage}; build the engine again")
            self._names[stage] = None if made is None else str(values[made].name)
        self._inference = TappedInference(engine, model, [name for name in self._names.values() if name is not None])

    def stages(self, tile: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """What every stage makes of a tile float32 [3, T, T], by its name: float32 [rows, channels]."""
        (features,) = self._inference.run(["image_features"], {"pixel_values": tile[None]})
        return {
            stage: features.astype(np.float32) if name is None else self._inference.taken(name)
            for stage, name in self._names.items()
        }
