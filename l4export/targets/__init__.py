"""What is special to each target, one file for each. A new target is a file here and a line below."""

from __future__ import annotations

from l4export.targets.checkpoint_target import CheckpointFiles, CheckpointRequest, CheckpointTarget
from l4export.targets.compressed_tensors.target import COMPRESSED_TENSORS
from l4export.targets.cpu import CPU
from l4export.targets.onnxruntime_cpu import ORT_CPU
from l4export.targets.onnxruntime_cuda import ORT_CUDA
from l4export.targets.standard_onnx import ONNX
from l4export.targets.target import GraphOptions, LayerRange, Target, UnfinishedEngine
from l4export.targets.tensorrt.target import TENSORRT, TENSORRT_RTX

__all__ = [
    "CHECKPOINT_TARGETS",
    "TARGETS",
    "CheckpointFiles",
    "CheckpointRequest",
    "CheckpointTarget",
    "GraphOptions",
    "LayerRange",
    "Target",
    "UnfinishedEngine",
]

TARGETS = {target.name: target for target in (ORT_CPU, CPU, ORT_CUDA, ONNX, TENSORRT_RTX, TENSORRT)}
"""The targets that give an engine, by the names that `--target` takes. The default is first."""

CHECKPOINT_TARGETS = {target.name: target for target in (COMPRESSED_TENSORS,)}
"""The targets that give a checkpoint for other programs, by the names that `--target` takes."""
