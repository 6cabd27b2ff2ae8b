"""A TensorRT engine, compiled ahead of time from the ONNX graph in an engine directory. Needs no GPU and no driver."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from l4export.errors import EnvironmentLacks, InputError
from l4export.policy import Policy

__all__ = ["CAPABILITIES", "PROFILES", "check_capabilities", "compile_engine", "profile_shapes", "tensorrt_rtx"]

CAPABILITIES: Mapping[str, frozenset[str]] = {
    "7.5": frozenset({"fp32", "fp16", "int8"}),
    "8.0": frozenset({"fp32", "fp16", "bf16", "int8", "int4"}),
    "8.6": frozenset({"fp32", "fp16", "bf16", "int8", "int4"}),
    "8.9": frozenset({"fp32", "fp16", "bf16", "int8", "int4", "fp8"}),
    "12.0": frozenset({"fp32", "fp16", "bf16", "int8", "int4", "fp8"}),
    "12.1": frozenset({"fp32", "fp16", "bf16", "int8", "int4", "fp8"}),
}
"""Compute capability -> the number formats that TensorRT for RTX 1.7 compiles for it. There are no others."""

PROFILES = ("decode", "prefill")
"""Optimisation profiles, by index: one token a call, and several."""

_FIRST_FEW = 3


def check_capabilities(capabilities: Sequence[str], dtype: str, policy: Policy | None) -> None:
    """Refuse what would not compile, by name.

    Raises:
        InputError: no compute capability, an unknown one, or one without a number format that is asked for.
    """
    if not capabilities:
        raise InputError(f"--compute-capability: name at least one of {', '.join(CAPABILITIES)}")
    kinds = [dtype, *sorted({rule.kind for rule in policy.rules} if policy else ())]
    for capability in capabilities:
        if capability not in CAPABILITIES:
            raise InputError(f"--compute-capability {capability[:20]} is not one of {', '.join(CAPABILITIES)}")
        for kind in kinds:
            if kind not in CAPABILITIES[capability]:
                able = [name for name, formats in CAPABILITIES.items() if kind in formats]
                raise InputError(f"--compute-capability {capability} has no {kind}; {kind} needs {', '.join(able)}")


def tensorrt_rtx() -> Any:
    """The module `tensorrt_rtx`.

    Raises:
        EnvironmentLacks: it is not installed, or its libraries cannot be loaded.
    """
    try:
        return importlib.import_module("tensorrt_rtx")
    except (ImportError, OSError) as error:
        detail = " ".join(str(error).split())[:120]
        raise EnvironmentLacks(
            f"--target tensorrt-rtx needs TensorRT for RTX ({detail}): pip install 'l4export[tensorrt-rtx]'"
        ) from error


def profile_shapes(
    inputs: Iterable[ir.Value], max_context: int, max_tokens: int
) -> dict[str, dict[str, tuple[list[int], list[int], list[int]]]]:
    """The least, the likeliest and the largest shape of every input, for each of `PROFILES`; of one row of tokens.

    Caches have one shape. `max_tokens` is what a runtime feeds at most in one call. A scalar has the range of its
    value instead: `logits_to_keep` 0 or 1.
    """
    tokens = {"decode": (1, 1, 1), "prefill": (min(2, max_tokens), max_tokens, max_tokens)}
    ranges: dict[str, dict[str, tuple[int, int, int]]] = {
        name: {"batch": (1, 1, 1), "sequence": tokens[name], "total": (1, max_context, max_context)}
        for name in PROFILES
    }
    return {name: {str(value.name): _corners(value, ranges[name]) for value in inputs} for name in PROFILES}


def compile_engine(
    onnx_path: Path, target: Path, capabilities: Sequence[str], max_context: int, max_tokens: int
) -> None:
    """Compile the graph at `onnx_path`, its weights beside it, for every one of `capabilities`, into the file `target`.

    Raises:
        EnvironmentLacks: TensorRT for RTX is missing.
        InputError: it does not take the graph: the first nodes that it refuses, their operators, and why.
        OSError: writing failed.
    """
    trt = tensorrt_rtx()
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise InputError(_report(trt, [parser.get_error(i) for i in range(parser.num_errors)]))
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        name = f"SM{capability.replace('.', '')}"
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    given = {network.get_input(i).name for i in range(network.num_inputs)}
    inputs = [value for value in ir.load(onnx_path).graph.inputs if value.name in given]
    for shapes in profile_shapes(inputs, max_context, max_tokens).values():
        profile = builder.create_optimization_profile()
        for value in inputs:
            corners = shapes[str(value.name)]
            (profile.set_shape if value.shape else profile.set_shape_input)(str(value.name), *corners)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise InputError(f"TensorRT for RTX {trt.__version__} cannot compile the graph: {_first(logger.errors)}")
    target.write_bytes(memoryview(engine))


def _corners(value: ir.Value, ranges: Mapping[str, tuple[int, int, int]]) -> tuple[list[int], list[int], list[int]]:
    assert value.shape is not None
    if not value.shape:
        return [0], [1], [1]
    fixed = [(dim,) * 3 if isinstance(dim, int) else ranges[str(dim.value)] for dim in value.shape]
    least, likeliest, most = (list(corner) for corner in zip(*fixed, strict=True))
    return least, likeliest, most


def _logger(trt: Any) -> Any:
    """Keeps errors, prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                self.errors.append(message)

    return Logger()


def _report(trt: Any, errors: Sequence[Any]) -> str:
    """One line: how many nodes the parser refuses, and of the first few node, operator and reason."""
    shown = [f"{e.node_name()} ({e.node_operator()}): {_clean(e.desc())}" for e in errors[:_FIRST_FEW]]
    return f"TensorRT for RTX {trt.__version__} refuses {len(errors)} of the graph's nodes: {'; '.join(shown)}"


def _first(errors: Sequence[str]) -> str:
    return _clean(errors[0]) if errors else "it does not say why"


def _clean(message: str) -> str:
    return " ".join(message.split())[:300]
