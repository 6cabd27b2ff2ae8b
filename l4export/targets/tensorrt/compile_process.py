"""The process that compiles.

    python -m l4export.targets.tensorrt.compile_process MODULE ONNX ENGINE CAPABILITIES PROFILE...

It prints nothing, or in one line what is wrong. The exit code is that of `l4export.errors`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from l4export.errors import EnvironmentLacks, InputError, L4Error, StorageError
from l4export.machine.tensorrt import check_version
from l4export.machine.tensorrt_logger import new_logger

__all__ = ["compile_graph", "main", "profile_shapes"]

Corners = tuple[list[int], list[int], list[int]]
"""The smallest, the likeliest and the largest shape."""

_FIRST_FEW = 3


def main(arguments: Sequence[str]) -> int:
    """Compile, and return the exit code."""
    module, onnx_path, target, capabilities, *profiles = arguments
    ranges = [tuple(map(int, profile.split(","))) for profile in profiles]
    try:
        compile_graph(module, Path(onnx_path), Path(target), capabilities.split(",") if capabilities else [], ranges)
    except L4Error as error:
        print(error)
        return error.exit_code
    return 0


def compile_graph(
    module: str, onnx_path: Path, target: Path, capabilities: Sequence[str], profiles: Sequence[tuple[int, ...]]
) -> None:
    """Do what `l4export.targets.tensorrt.compile.compile_engine` says, in this process."""
    trt = _loaded(module)
    logger = new_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise InputError(
            _report(f"{module} {trt.__version__}", [parser.get_error(i) for i in range(parser.num_errors)])
        )
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32, not 10 bits of it
    if capabilities:
        _compile_for(trt, config, capabilities)
    inputs = ir.load(onnx_path).graph.inputs
    for tokens in profiles:
        shapes = profile_shapes(inputs, tokens)
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            (profile.set_shape if len(tensor.shape) else profile.set_shape_input)(tensor.name, *shapes[tensor.name])
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        why = _clean(logger.errors[0]) if logger.errors else "it does not say why"
        raise InputError(f"{module} {trt.__version__} cannot compile the graph: {why}")
    try:
        target.write_bytes(memoryview(engine))
    except OSError as error:
        raise StorageError(f"{target}: {error.strerror}; make room") from error


def _compile_for(trt: Any, config: Any, capabilities: Sequence[str]) -> None:
    """The one thing that TensorRT for RTX has and TensorRT lacks, as it compiles for this machine's GPU."""
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        name = f"SM{capability.replace('.', '')}"
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)


def profile_shapes(inputs: Iterable[ir.Value], tokens: tuple[int, ...]) -> dict[str, Corners]:
    """Return the smallest, the likeliest and the largest shape of every input, for calls of so many tokens of one row.

    Any of the tokens may be of an image, and mostly none is. Of a vision tower the numbers are those of tiles.

    Caches have one shape. The mask covers the new tokens alone (`mask_start` stands for the others). A scalar has the
    range of its value instead: `logits_to_keep` 0 or 1.
    """
    ranges = {"batch": (1, 1, 1), "batch_or_1": (1, 1, 1), "sequence": tokens, "total": tokens}
    ranges |= {"image_tokens": (0, 0, tokens[-1]), "tiles": tokens}
    return {str(value.name): _corners(value, ranges) for value in inputs}


def _corners(value: ir.Value, ranges: Mapping[str, tuple[int, ...]]) -> Corners:
    assert value.shape is not None
    if not value.shape:
        return [0], [1], [1]
    fixed: list[tuple[int, ...]] = [
        (dim, dim, dim) if isinstance(dim, int) else ranges[str(dim.value)] for dim in value.shape
    ]
    least, likeliest, most = (list(corner) for corner in zip(*fixed, strict=True))
    return least, likeliest, most


def _loaded(module: str) -> Any:
    try:
        trt = importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise EnvironmentLacks(f"{module} cannot be loaded ({_clean(str(error))}); install it again") from error
    check_version(trt)
    return trt


def _report(parser: str, errors: Sequence[Any]) -> str:
    """Say in one line how many nodes the parser refuses, with the name, operator and reason of the first few."""
    named = [(f"{e.node_name()} ({e.node_operator()}): " if e.node_operator() else "", e) for e in errors]
    shown = [f"{name}{_clean(error.desc())}" for name, error in named[:_FIRST_FEW]]
    return f"{parser} refuses {len(errors)} of the graph's nodes: {'; '.join(shown)}"


def _clean(message: str) -> str:
    return " ".join(message.split())[:300]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
