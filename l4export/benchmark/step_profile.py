"""What ONNX Runtime's own trace says of decode steps: kernels, and how long the GPU and the host are busy."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from l4export.engine.manifest import Manifest
from l4export.runtimes.onnxruntime.engine import OnnxRuntimeEngine
from l4export.runtimes.random_text import random_text

__all__ = ["StepProfile", "profile_steps", "step_profile"]

_WARM_UP_STEPS = 4


@dataclass(frozen=True)
class StepProfile:
    """Medians of the steps of a trace. Tracing takes time itself, and steps are traced without CUDA graphs.

    Attributes:
        operators: Nodes of the graph that were executed, by execution provider.
        kernels: Kernels that the GPU ran; 0 where ONNX Runtime was built without their trace.
        gpu_seconds: The time that those took, added.
        host_seconds: From the step's beginning to its end on the host.
    """

    operators: dict[str, int]
    kernels: int
    gpu_seconds: float
    host_seconds: float


def profile_steps(directory: Path, manifest: Manifest, prefill: int, steps: int, provider: str | None) -> StepProfile:
    """Load an engine on ONNX Runtime anew, with tracing, and decode some tokens after a prompt of random ones.

    `provider` as for `l4export.runtimes.load`. The memory of an engine is needed once more.
    """
    ids = random_text(manifest, prefill + _WARM_UP_STEPS + steps)
    with TemporaryDirectory() as folder:
        engine = OnnxRuntimeEngine(directory, manifest, None, provider, Path(folder) / "trace")
        session = engine.session(capacity=len(ids))
        session.append(ids[:prefill], last_only=True)
        for token in ids[prefill:]:
            session.append([int(token)], last_only=True)
        trace = Path(engine.inference.end_profiling())
        return step_profile(json.loads(trace.read_text(encoding="utf-8")), steps)


def step_profile(events: Sequence[Mapping[str, Any]], steps: int) -> StepProfile:
    """The last `steps` runs of a trace; times in it are microseconds."""
    runs = [event for event in events if event.get("cat") == "Session" and event["name"] == "model_run"]
    last = sorted(runs, key=lambda event: float(event["ts"]))[-steps:]
    kernels = [_within(run, events, "Kernel") for run in last]
    nodes = [_within(run, events, "Node") for run in last]
    providers = [str(node["args"].get("provider")) for node in nodes[-1] if str(node["name"]).endswith("_kernel_time")]
    return StepProfile(
        operators={name: providers.count(name) for name in sorted(set(providers))},
        kernels=round(statistics.median(map(len, kernels))),
        gpu_seconds=statistics.median(sum(float(each["dur"]) for each in run) for run in kernels) / 1e6,
        host_seconds=statistics.median(float(run["dur"]) for run in last) / 1e6,
    )


def _within(run: Mapping[str, Any], events: Sequence[Mapping[str, Any]], category: str) -> list[Mapping[str, Any]]:
    begin, end = float(run["ts"]), float(run["ts"]) + float(run["dur"])
    return [event for event in events if event.get("cat") == category and begin <= float(event["ts"]) < end]
