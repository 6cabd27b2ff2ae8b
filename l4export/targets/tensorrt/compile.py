"""A TensorRT engine, compiled from the ONNX graph in an engine directory.

TensorRT for RTX compiles for named compute capabilities and needs no GPU and no driver; TensorRT itself compiles for
the GPU of the machine.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from l4export.engine.profiles import TokenRange
from l4export.errors import EnvironmentLacks, InputError, L4Error, StorageError
from l4export.machine.available_memory import available_memory
from l4export.machine.cuda_driver import open_driver
from l4export.machine.tensorrt import MODULES, check_package
from l4export.quantization.policy import Policy

__all__ = [
    "CAPABILITIES",
    "check_capabilities",
    "check_memory",
    "check_tensorrt",
    "compile_bytes",
    "compile_engine",
]

_AMPERE = frozenset({"fp32", "fp16", "bf16", "int8", "int4"})
_ADA = _AMPERE | {"fp8"}

CAPABILITIES: Mapping[str, frozenset[str]] = {
    "7.5": frozenset({"fp16", "int8"}),
    "8.0": _AMPERE,
    "8.6": _AMPERE,
    "8.9": _ADA,
    "12.0": _ADA,
    "12.1": _ADA,
}
"""For each compute capability the number formats that TensorRT for RTX 1.7 compiles for it. There are no others."""

_PROCESS_BYTES = 500 << 20
_COST = 3
"""Bytes of memory that each byte of weights takes: for the mapped data files, TensorRT's copy, and the engine."""

_ERRORS = {error.exit_code: error for error in (InputError, EnvironmentLacks, StorageError)}


def check_capabilities(capabilities: Sequence[str], dtype: str, policy: Policy | None) -> None:
    """Refuse what would not compile, by name.

    Raises:
        InputError: no compute capability, an unknown one, or one that lacks a number format that is asked for.
    """
    if not capabilities:
        raise InputError(f"--target tensorrt-rtx: name --compute-capability, of {', '.join(CAPABILITIES)}")
    kinds = [dtype, *sorted({rule.kind for rule in policy.rules} if policy else ())]
    for capability in capabilities:
        if capability not in CAPABILITIES:
            raise InputError(f"--compute-capability {capability[:20]} is not one of {', '.join(CAPABILITIES)}")
        for kind in kinds:
            if kind not in CAPABILITIES[capability]:
                able = [name for name, formats in CAPABILITIES.items() if kind in formats]
                raise InputError(f"--compute-capability {capability} has no {kind}; {kind} needs {', '.join(able)}")


def check_tensorrt(target: str) -> None:
    """Check that the target can be compiled here. The driver comes first, as TensorRT may crash where there is none.

    Raises:
        EnvironmentLacks: no driver, no GPU, or no package. The message says what to install.
    """
    if target == "tensorrt":
        open_driver("--target tensorrt compiles for the GPU of this machine", "use --target tensorrt-rtx")
    check_package(target)


def check_memory(weights: int) -> None:
    """Check that a graph with so many bytes of weights can be compiled in the memory that is free.

    Raises:
        EnvironmentLacks: there is too little memory, so that the operating system would end the program. The message
            says what to do.
    """
    needed, available = compile_bytes(weights), available_memory()
    if needed > available:
        raise EnvironmentLacks(
            f"compiling takes about {needed / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are free; "
            "--memory-budget cuts the decoder into engines that take less"
        )


def compile_bytes(weights: int) -> int:
    """Estimate how many bytes of memory it takes to compile a graph with so many bytes of weights."""
    return _PROCESS_BYTES + _COST * weights


def compile_engine(
    target: str, onnx_path: Path, engine_path: Path, capabilities: Sequence[str], profiles: Sequence[TokenRange]
) -> None:
    """Compile the graph at `onnx_path`, whose weights lie in the same directory, into the file `engine_path`.

    The engine is for each of `capabilities` with target `tensorrt-rtx`, and for this machine's GPU with `tensorrt`. It
    has an optimisation profile for one row of each of `profiles`. Another process compiles it, because TensorRT writes
    to the terminal and can crash.

    Raises:
        EnvironmentLacks: TensorRT cannot be loaded.
        InputError: it does not take the graph: the first nodes that it refuses, their operators, and why.
        StorageError: writing failed.
    """
    ranges = [",".join(map(str, profile)) for profile in profiles]
    arguments = [MODULES[target], str(onnx_path), str(engine_path), ",".join(capabilities), *ranges]
    command = [sys.executable, "-m", "l4export.targets.tensorrt.compile_process", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise InputError(f"{MODULES[target]} was ended by {name} while compiling the graph; try other options")
    if done.returncode:
        kind: type[L4Error] = _ERRORS.get(done.returncode, InputError)
        raise kind(done.stdout.strip() or f"{MODULES[target]} failed: {done.stderr.strip()[-300:]}")
