"""The reference of a vision tower: transformers' tower and projector in float32 on the checkpoint's own weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.checkpoint import Checkpoint
from l4export.errors import InputError, one_line
from l4export.reference.transformers_model import reference_config

__all__ = ["HFVisionTower"]


class HFVisionTower:
    """`Llama4VisionModel` and `Llama4MultiModalProjector` in float32 on the CPU.

    Independent of l4export's own readers: transformers reads `vision_config`, and the safetensors library the weights.
    Weights in another form than transformers saves, and those with adapters, are read by l4export.

    Raises:
        EnvironmentLacks: torch or transformers is not installed.
        InputError: the checkpoint has no tower, or transformers does not take its config and weights together.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        if not checkpoint.has_vision():
            raise InputError(f"{checkpoint.path}: has no vision tower; name the checkpoint the engine was built from")
        text = reference_config(checkpoint)
        import torch
        from transformers import Llama4Config
        from transformers.models.llama4.modeling_llama4 import Llama4MultiModalProjector, Llama4VisionModel

        self._torch = torch
        try:
            config = Llama4Config(text_config=text, vision_config=checkpoint.raw_config["vision_config"])
            # Made in float32: a module that is converted loses the complex numbers of its rotation.
            self.model = _loaded(Llama4VisionModel(config.vision_config), checkpoint, "vision_model.")
            self.projector = _loaded(Llama4MultiModalProjector(config), checkpoint, "multi_modal_projector.")
        except Exception as error:
            raise InputError(
                f"{checkpoint.path}: transformers refuses its vision tower ({one_line(error)}); "
                "config.json and the weights do not match"
            ) from error

    def features(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pixel values float32 [n, 3, T, T] -> rows for their image tokens, float32 [rows, D]. One tile at a time."""
        with self._torch.inference_mode():
            rows = [self._rows(self._torch.from_numpy(np.ascontiguousarray(tile[None]))) for tile in tiles]
        return np.concatenate(rows)

    def stages(self, tile: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """What every stage makes of a tile float32 [3, T, T], by its name in `tower_stages`: float32 [rows, channels].

        The values are those of transformers' own modules, when they run.
        """
        found: dict[str, NDArray[np.float32]] = {}

        def keep(stage: str, value: Any) -> None:
            value = value[0] if isinstance(value, tuple) else value
            found[stage] = value.flatten(0, -2).numpy().copy()

        layers = {f"layer {index}": layer for index, layer in enumerate(self.model.model.layers)}
        modules = {"embedding": self.model.layernorm_pre, **layers, "adapter": self.model.vision_adapter}
        hooks = [
            module.register_forward_hook(lambda _, taken, made, stage=stage: keep(stage, made))
            for stage, module in modules.items()
        ]
        mlp = self.model.vision_adapter.mlp  # of the adapter, behind the pixel shuffle, which is no module
        hooks.append(mlp.register_forward_pre_hook(lambda _, taken: keep("pixel shuffle", taken)))
        try:
            features = self.features(tile[None])
            return {**found, "projector": features}
        finally:
            for hook in hooks:
                hook.remove()

    def _rows(self, tile: Any) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self.projector(self.model(tile).last_hidden_state).flatten(0, 1).numpy()
        return rows


def _loaded(module: Any, checkpoint: Checkpoint, prefix: str) -> Any:
    """A module of float32 with the checkpoint's tensors under a prefix: exactly those that it has."""
    read = _read_files if checkpoint.is_vision_plain() else _read_stored
    module.load_state_dict(read(module, checkpoint, prefix))  # copies into the module's own float32
    return module.eval()


def _read_files(module: Any, checkpoint: Checkpoint, prefix: str) -> dict[str, Any]:
    """The tensors under a prefix."""
    from safetensors import safe_open

    weights: dict[str, Any] = {}
    for file in checkpoint.files:
        with safe_open(file.path, "pt") as opened:
            names = [name for name in opened.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a dict)
            weights |= {name.removeprefix(prefix): opened.get_tensor(name) for name in names}
    return weights


def _read_stored(module: Any, checkpoint: Checkpoint, prefix: str) -> dict[str, Any]:
    """The module's weights as l4export reads them, in whatever form they are stored."""
    import torch

    weights: dict[str, Any] = {}
    for name, parameter in module.state_dict().items():
        stored = checkpoint.vision_tensor(f"{prefix}{name}", tuple(parameter.shape))
        weights[name] = torch.from_numpy(stored.read().astype(np.float32))
    return weights
