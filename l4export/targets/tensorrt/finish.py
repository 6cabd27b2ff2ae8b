"""What finishes a TensorRT engine: every part's graph, and the engine compiled from it."""

from __future__ import annotations

from pathlib import Path

from l4export.engine.vision_interface import TILES_PER_CALL
from l4export.machine.tensorrt import MODULES
from l4export.targets.target import UnfinishedEngine
from l4export.targets.tensorrt.compile import compile_engine
from l4export.targets.tensorrt.parts import cut_decoder, part_names
from l4export.weights.emission import emit_graph

__all__ = ["compile_parts"]


def compile_parts(provider: str, engine: UnfinishedEngine) -> list[str]:
    """Write each part's graph into the engine's directory and compile it there, and the vision tower, if there is one.

    Returns the names of the files that were added.

    Args:
        provider: `tensorrt-rtx` or `tensorrt`.
        engine: A lowered decoder whose weights are on disk.

    Raises:
        EnvironmentLacks: TensorRT cannot be loaded.
        InputError: it does not take a part's graph.
        StorageError: writing failed.
    """
    files: list[str] = []
    names = part_names(engine.parts, Path(engine.graph).stem)
    for number, (name, part) in enumerate(zip(names, cut_decoder(engine.model, engine.parts), strict=True), start=1):
        engine.on_notice(f"compiling with {MODULES[provider]}, engine {number} of {len(names)}")
        graph, compiled = emit_graph(part, (), engine.directory, name), f"{name}.engine"
        compile_engine(
            provider,
            *(engine.directory / graph, engine.directory / compiled),
            *(engine.compute_capabilities, engine.profiles),
        )
        files += [graph, compiled]
    if engine.tower:
        engine.on_notice(f"compiling with {MODULES[provider]}, the vision tower")
        compiled = f"{Path(engine.tower).stem}.engine"
        compile_engine(
            provider,
            *(engine.directory / engine.tower, engine.directory / compiled),
            *(engine.compute_capabilities, [TILES_PER_CALL]),
        )
        files.append(compiled)
    return files
