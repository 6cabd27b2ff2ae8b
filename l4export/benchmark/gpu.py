"""What an engine takes of a GPU, and how near decoding comes to the GPU's own bandwidth."""

from __future__ import annotations

import time
from dataclasses import dataclass

from l4export.benchmark.step_profile import StepProfile
from l4export.machine.cuda import Cuda
from l4export.runtimes.onnxruntime.execution import CudaExecution

__all__ = ["GpuReport", "copy_bandwidth", "gpu_report"]

_COPIES = 10
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class GpuReport:
    """The GPU's side of a report. Sizes are in bytes, bandwidths in bytes a second.

    `cuda` is the newest version of CUDA that the driver supports. `copy_bandwidth` is that of a copy within the GPU's
    memory, bytes read and bytes written added. `decode_bandwidth_share` is the part of it at which decoding reads
    weights. `used_bytes` is what was free before loading less what is free after all runs, and so the peak: ONNX
    Runtime gives nothing back. Of it `weight_bytes` and `cache_bytes` are known, `working_bytes` is the rest.
    (Whatever else uses the GPU meanwhile counts too.) `steps` says whether CUDA graphs were used. `step` is None where
    it was not profiled.
    """

    name: str
    compute_capability: str
    cuda: str
    memory_bytes: int
    copy_bandwidth: float
    decode_bandwidth_share: float
    used_bytes: int
    weight_bytes: int
    cache_bytes: int
    working_bytes: int
    steps: str
    step: StepProfile | None


def gpu_report(device: CudaExecution, weights: int, caches: int, bytes_a_second: float) -> GpuReport:
    """The report of a GPU on which an engine has just run, without a profile.

    `weights` and `caches` are bytes; `bytes_a_second` is what decoding reads of weights.
    """
    cuda = device.card.cuda
    free, total = cuda.memory()
    used = device.card.free - free
    bandwidth = copy_bandwidth(cuda)
    return GpuReport(
        name=cuda.name,
        compute_capability=".".join(map(str, cuda.capability)),
        cuda=".".join(map(str, cuda.driver)),
        memory_bytes=total,
        copy_bandwidth=bandwidth,
        decode_bandwidth_share=bytes_a_second / bandwidth,
        used_bytes=used,
        weight_bytes=weights,
        cache_bytes=caches,
        working_bytes=used - weights - caches,
        steps=device.steps,
        step=None,
    )


def copy_bandwidth(cuda: Cuda) -> float:
    """Bytes a second that the GPU reads and writes when it copies: the best of several copies of up to 1 GiB."""
    size = min(_MOST_BYTES, cuda.memory()[0] // 4)
    source, target = cuda.allocate(size), cuda.allocate(size)
    best = 0.0
    for _ in range(_COPIES):
        began = time.perf_counter()
        cuda.copy(target.address, source.address, size)
        best = max(best, 2 * size / (time.perf_counter() - began))
    return best
