"""An engine for another device on this machine's CPU: its portable graph, with weights in the order that a CPU reads.

ONNX Runtime's CPU provider does not know the orders of other devices, and computes something else with packed weights
without an error. So no session on the CPU reads the device's graph, and every one is made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import PackedWeight
from l4export.engine.weight_layout import unpack
from l4export.errors import InputError

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["cpu_session", "unpacked"]


def cpu_session(
    graph: str | bytes, options: Any, engine: Path, packed: Sequence[PackedWeight] = ()
) -> onnxruntime.InferenceSession:
    """A session on the CPU provider.

    Args:
        graph: The path of a graph, or a serialized one.
        options: `onnxruntime.SessionOptions`.
        engine: The directory that has the packed weights.
        packed: Weights that the graph reads, which lie packed in it. They are in memory as long as the session is.

    Raises:
        InputError: packed weights that do not fit into memory.
        Exception: what ONNX Runtime has against the graph.
    """
    import onnxruntime as ort

    try:
        values = [ort.OrtValue.ortvalue_from_numpy(unpacked(engine, weight)) for weight in packed]
    except MemoryError as error:
        raise InputError(f"{engine}: too little memory for its experts' weights, which a CPU needs unpacked") from error
    if values:
        options.add_external_initializers([weight.name for weight in packed], values)
    # its fallback prints banners before it fails again
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    session.unpacked_weights = values  # ONNX Runtime reads them where they are, and does not own them
    return session


def unpacked(engine: Path, weight: PackedWeight, experts: slice = slice(None)) -> NDArray[np.uint8]:
    """Plain codes [experts, N, K * bits / 8] of a packed weight, from the engine's data file, expert by expert."""
    stored = np.memmap(engine / weight.file, np.uint8, "r", weight.offset, weight.shape)[experts]
    plain = np.empty(stored.shape, np.uint8)
    for packed, out in zip(stored, plain, strict=True):
        out[:] = unpack(packed, weight.bits)
    return plain
