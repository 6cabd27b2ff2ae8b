"""Recipes for the weights of a checkpoint, and which of its tensors and files they name."""

from __future__ import annotations

from l4export.checkpoint import StoredWeight
from l4export.compiler.inputs import BuildInputs
from l4export.model.weight_names import moved_up
from l4export.weights.recipes import Source

__all__ = ["SourceWeights"]


class SourceWeights:
    """The weights that a build asks for.

    Args:
        inputs: The opened checkpoint.
        layers: (A, B) where layer 0 of what is built is the checkpoint's layer A; None: all layers are built.

    Attributes:
        names: The tensors that were named (without prefix), in the checkpoint's own words.
        file_names: The files that hold them.
    """

    def __init__(self, inputs: BuildInputs, layers: tuple[int, int] | None = None) -> None:
        self._checkpoint, self._layers = inputs.checkpoint, layers
        self.names: set[str] = set()
        self.file_names: set[str] = set()

    def recipe(self, name: str, shape: tuple[int, ...]) -> Source:
        """What the checkpoint stores for a weight of the text model. Raises `InputError`."""
        return self._named(self._checkpoint.tensor(moved_up(name, self._layers[0] if self._layers else 0), shape))

    def tower_recipe(self, name: str, shape: tuple[int, ...]) -> Source:
        """The same for the vision tower."""
        return self._named(self._checkpoint.vision_tensor(name, shape))

    def _named(self, weight: StoredWeight) -> Source:
        self.names.update(part.name.removeprefix(self._checkpoint.prefix) for part in weight.parts)
        self.file_names.update(part.file_name for part in weight.parts)
        return Source(weight)

    def check_all_known(self) -> None:
        """Refuse tensors of the text model that were not named, unless only some layers are built. Raises
        `InputError`."""
        if self._layers is None:
            self._checkpoint.check_all_known(self.names)

    def check_tower_known(self) -> None:
        """Refuse tensors of the vision tower that were not named. Raises `InputError`."""
        self._checkpoint.check_vision_known(self.names)

    def files(self) -> tuple[str, ...]:
        """The config, the files with weights (all of them, or those of the layers that are built), and adapters."""
        everything = {file.path.name for file in self._checkpoint.files} if self._layers is None else set()
        adapters = {name for adapter in self._checkpoint.adapters for name in adapter.files}
        return (self._checkpoint.config_file.path.name, *sorted(self.file_names | everything | adapters))
