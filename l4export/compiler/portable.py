"""The decoder as a CPU can run it, beside one in a form that only its device executes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from l4export.compiler.compile import CompiledGraph
from l4export.engine.manifest import PORTABLE, UNPACKED, PackedWeight
from l4export.engine.weight_layout import MIXED_GEMM_SM80
from l4export.quantization.packed_codes import PackedCodes
from l4export.weights.emission import emit_graph
from l4export.weights.evaluation import Output
from l4export.weights.placement import DataFile, identity
from l4export.weights.recipes import Recipe, as_recipe

__all__ = ["packed_weights", "portable_model", "write_portable"]


def packed_weights(files: Sequence[DataFile]) -> tuple[PackedWeight, ...]:
    """Which weights are written in the order of a device's kernels, and where."""
    return tuple(
        PackedWeight(placed.name, MIXED_GEMM_SM80, codes.bits, file.name, placed.offset, placed.recipe.dims)
        for file in files
        for placed in file.placements
        if (codes := _packed(placed.recipe)) is not None
    )


def write_portable(graph: CompiledGraph, directory: Path) -> list[str]:
    """Write `portable.onnx`, and return its name; nothing if it is the decoder."""
    if graph.portable is graph.model:
        return []
    return [emit_graph(portable_model(graph, directory), (), directory, PORTABLE)]


def portable_model(graph: CompiledGraph, directory: Path) -> ir.Model:
    """A copy of the graph that a CPU can run, which refers to the decoder's data files in `directory`.

    Of packed weights it refers to a file that does not exist, because their bytes must come from whoever opens it.
    What is in no data file stays a recipe.
    """
    places = _places(graph.files)
    model = graph.portable.clone()
    for value in model.graph.initializers.values():
        if value.const_value is None:
            continue
        tensor = as_recipe(value.const_value)
        if place := places.get(identity(tensor)):
            value.const_value = ir.ExternalTensor(
                *(*place, tensor.nbytes, tensor.dtype),
                shape=ir.Shape(tensor.dims),
                name=str(value.name),
                base_dir=directory,
            )
    return model


def _places(files: Sequence[DataFile]) -> dict[object, tuple[str, int]]:
    """File and offset of every tensor that is placed, and of the plain ones that packed weights are made of."""
    places: dict[object, tuple[str, int]] = {}
    for file in files:
        for placed in file.placements:
            recipe, place = placed.recipe, (file.name, placed.offset)
            places[identity(recipe)] = place
            if isinstance(recipe, Output) and isinstance(recipe.evaluation, PackedCodes):
                plain = recipe.evaluation.plain.evaluation.outputs[recipe.index]
                places[identity(plain)] = place if _packed(recipe) is None else (UNPACKED, 0)
    return places


def _packed(recipe: Recipe) -> PackedCodes | None:
    """The weight whose packed codes these are; None for everything else."""
    if isinstance(recipe, Output) and isinstance(recipe.evaluation, PackedCodes) and recipe.index == 0:
        return recipe.evaluation
    return None
