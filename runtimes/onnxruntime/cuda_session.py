"""An inference session on CUDA: its options, each with its reason, and the refusal of what would run elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l4export.errors import EnvironmentLacks, InputError, printable
from l4export.runtimes.onnxruntime.card import CUDA
from l4export.runtimes.onnxruntime.recordings import Recordings

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["check_assignment", "host_inputs", "open_on_cuda", "provider_options", "recording_problem"]

_READERS = 16
"""More do not read one file faster, and ONNX Runtime takes up to 64."""

_HEAVY = frozenset({"Attention", "Gemm", "MatMul", "RMSNormalization", "RotaryEmbedding"})
"""Work for the GPU, beside the operators of ONNX Runtime's own domain; others may compute shapes, on a CPU."""

_NO_GRAPH = "CUDA Graph"
"""What ONNX Runtime's refusals to record a session have in common."""


def provider_options(records: bool) -> dict[str, str]:
    """Options of the CUDA provider; what is not named has ONNX Runtime's default.

    `records`: whether steps may be recorded as CUDA graphs.
    """
    return {
        # Growing by what is asked for: the default, powers of two, takes up to twice what is used.
        "arena_extend_strategy": "kSameAsRequested",
        # float32 products are float32: TF32 has 10 bits of them, and numbers would depend on the card.
        "use_tf32": "0",
        # Data files go through pinned buffers to the card, read by that many threads.
        "external_data_loader_reading_threads": str(min(_READERS, os.cpu_count() or 1)),
        "enable_cuda_graph": "1" if records else "0",
    }


def open_on_cuda(
    decoder: Path, options: Any, problem: str | None = None
) -> tuple[onnxruntime.InferenceSession, Recordings]:
    """Load a graph on CUDA, with CUDA graphs where ONNX Runtime can record it and else without.

    A `problem` is why the caller does not want them.

    `options` are those of `session_options`; they are changed.

    Raises:
        InputError: a graph that ONNX Runtime does not take, or that does not fit the card.
        EnvironmentLacks: another provider, or one that leaves operators to the CPU.
    """
    # Weights get memory of their own: in the arena each would be rounded, and the rest of it lost.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # `session.disable_cpu_ep_fallback` is left off: it refuses the operators that compute shapes, too.
    try:
        session, recordings = _session(decoder, options, problem is None), Recordings(problem)
    except InputError as error:
        if _NO_GRAPH not in str(error):
            raise
        session, recordings = _session(decoder, options, False), Recordings("ONNX Runtime refuses to record the graph")
    check_assignment(decoder, session)
    if recordings.problem is None:
        recordings.problem = recording_problem(session)
    return session, recordings


def _session(decoder: Path, options: Any, records: bool) -> onnxruntime.InferenceSession:
    import onnxruntime as ort

    try:
        providers = [(CUDA, provider_options(records))]
        session = ort.InferenceSession(str(decoder), options, providers=providers, enable_fallback=0)
    except Exception as error:
        detail = printable(str(error))[:300]
        raise InputError(f"{decoder}: ONNX Runtime {ort.__version__} cannot load it ({detail})") from error
    if session.get_providers()[0] != CUDA:
        raise EnvironmentLacks(
            f"{decoder}: ONNX Runtime {ort.__version__} gave {session.get_providers()[0]} instead of {CUDA}: "
            "install the CUDA and cuDNN that this version of onnxruntime-gpu needs: pip install 'l4export[cuda]'"
        )
    return session


def check_assignment(decoder: Path, session: onnxruntime.InferenceSession) -> None:
    """Refuse a session that leaves to the CPU what is work for the GPU.

    Raises:
        EnvironmentLacks: it does; the operator is named.
    """
    import onnxruntime as ort

    for subgraph in session.get_provider_graph_assignment_info():
        for node in subgraph.get_nodes() if subgraph.ep_name != CUDA else ():
            if node.domain == "com.microsoft" or node.op_type in _HEAVY:
                raise EnvironmentLacks(
                    f"{decoder}: onnxruntime-gpu {ort.__version__} has no kernel on CUDA for {node.op_type} {node.name}"
                    f" and would run it on {subgraph.ep_name}; use the version that l4export[cuda] names"
                )


def host_inputs(session: onnxruntime.InferenceSession) -> frozenset[str]:
    """Inputs that the graph reads in the host's memory: bound there, they are copied nowhere."""
    pairs = zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    return frozenset(value.name for value, info in pairs if info.name == "Cpu")


def recording_problem(session: onnxruntime.InferenceSession) -> str | None:
    """Why a step of this session cannot be repeated from a recording; None if it can.

    Repeated are the kernels alone: what the host computes from an input stays as it was recorded. Of the host's inputs
    only `logits_to_keep` is the same in every step.
    """
    changing = sorted(host_inputs(session) - {"logits_to_keep"})
    return f"{changing[0]} is read on the host" if changing else None
