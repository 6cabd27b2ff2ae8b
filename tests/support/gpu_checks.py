"""What `make test-gpu` measures, as rows of its table. `provider` "cpu" tries the same without a GPU."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seeing import seeing_checkpoint

from l4export import runtimes
from l4export.benchmark.measure import bench
from l4export.checkpoint import sample
from l4export.checkpoint.sample import write_sample
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.gpu_memory import GpuEngine, gpu_memory
from l4export.engine.manifest import load_manifest
from l4export.parity.whole_model import ParityReport, check_parity
from l4export.quantization.policy import standard_policy
from l4export.runtimes.onnxruntime.engine import OnnxRuntimeEngine

VARIANTS = ("scout", "maverick", "guard", "mobile", "scout-top2", "maverick-top2")
QUANTS = {"fp16": "none", "int8": "int8", "int4": "int4"}
PREFILL, DECODE, CONTEXT = 50, 200, 256

Row = dict[str, Any]


def missing_gpu() -> str | None:
    """What is missing for the tests on a GPU; None where nothing is."""
    try:
        if code := ctypes.CDLL("libcuda.so.1").cuInit(0):
            return f"the NVIDIA driver finds no GPU (CUDA error {code})"
    except OSError:
        return "no NVIDIA driver"
    try:
        import onnxruntime as ort
    except ImportError:
        return "no onnxruntime-gpu"
    return None if "CUDAExecutionProvider" in ort.get_available_providers() else "onnxruntime has no CUDA provider"


def checkpoint(folder: Path, variant: str, layout: str) -> Path:
    """A tiny checkpoint for CUDA: experts as wide as a block of QMoE; for `static` one chunk holds the context."""
    name, _, top = variant.partition("-top")
    path = folder / f"{variant}-{layout}"
    _write(path, name, "tiny")
    file = path / "config.json"
    config = json.loads(file.read_text())
    for part in (config, config.get("text_config", {})):
        if top and "num_experts_per_tok" in part:
            part["num_experts_per_tok"] = int(top)
        if layout == "static" and "attention_chunk_size" in part:
            part["attention_chunk_size"] = CONTEXT
    file.write_text(json.dumps(config))
    return path


def _write(path: Path, variant: str, size: str, vision: bool = False) -> None:
    """A checkpoint; a tiny one with experts as wide as a block of QMoE."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sample._SHAPES["tiny"], "intermediate_size", 64)
        write_sample(path, variant, size, seed=5, vision=vision)


def parity_row(
    folder: Path, variant: str, weights: str, layout: str, provider: str | None, decode: int = DECODE
) -> Row:
    """Build a tiny engine and compare every logit of a prompt and `decode` steps with PyTorch."""
    source, engine, policy = checkpoint(folder, variant, layout), folder / "engine", standard_policy(QUANTS[weights])
    _build(source, engine, kv_layout=layout, max_context=CONTEXT, policy=policy)
    report = check_parity(engine, source, PREFILL, decode, dequantized=policy is not None, provider=provider)
    return _row("parity", f"{variant} {weights} {layout}", report)


def image_row(folder: Path, variant: str, vision_dtype: str, provider: str | None, decode: int = 40) -> Row:
    """Build a tiny engine that sees, and compare pixels, features and logits of a prompt with two pictures."""
    source, engine = seeing_checkpoint(folder / "c", variant), folder / "engine"
    _build(source, engine, kv_layout="chunked", max_context=CONTEXT, vision_dtype=vision_dtype)
    report = check_parity(engine, source, 20, decode, provider=provider, images="seeded")
    assert report.images is not None
    row = _row("images", f"{variant}, tower {vision_dtype}", report)
    return row | {"feature difference": report.images.feature_difference}


def _row(check: str, engine: str, report: ParityReport) -> Row:
    assert report.decode is not None
    return {
        "check": check,
        "engine": engine,
        "executed on": report.provider,
        "passed": report.passed,
        "prefill difference": report.prefill.max_relative_difference,
        "decode difference": report.decode.max_relative_difference,
        "failures": list(report.failures),
    }


def sparse_engine(folder: Path, size: str, layers: int, context: int) -> Path:
    """The first layers of Scout in INT4 from a checkpoint whose tensors are holes."""
    _write(folder / "scout", "scout", size)
    policy, part = standard_policy("int4"), (0, layers)
    options = {"kv_layout": "chunked", "max_context": context, "policy": policy, "layers": part, "jobs": None}
    _build(folder / "scout", folder / "engine", **options)
    return folder / "engine"


def tower_engine(folder: Path, size: str, context: int) -> Path:
    """The vision tower of Scout in float16 before one layer, from a checkpoint whose tensors are holes."""
    _write(folder / "c", "scout", size, vision=True)
    _build(folder / "c", folder / "engine", kv_layout="chunked", max_context=context, layers=(0, 1), jobs=None)
    return folder / "engine"


def tower_row(engine: Path, tiles: int, repeats: int = 5) -> Row:
    """Seconds that the tower takes for tiles, and its difference from this machine's CPU was accepted before."""
    opened = runtimes.load(engine)
    assert isinstance(opened, OnnxRuntimeEngine) and opened.manifest.vision is not None
    side = opened.manifest.vision.image_size
    pixels = np.random.default_rng(0).uniform(-1, 1, (tiles, 3, side, side)).astype(np.float32)
    opened.image_features(pixels)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        opened.image_features(pixels)
        times.append(time.perf_counter() - began)
    return {"check": "tower", "engine": f"{tiles} tiles", "seconds": statistics.median(times), "of": opened.provider}


def _build(source: Path, engine: Path, **options: Any) -> None:
    """One worker: a tiny engine has no work for more."""
    build(source, engine, BuildOptions(**{"target": "ort-cuda", "dtype": "fp16", "jobs": 1, **options}))


def speed_row(engine: Path, prefill: int, decode: int) -> Row:
    """`bench` of an engine, with its memory beside what the formula says."""
    report, manifest = bench(engine, prefill, decode, repeats=3), load_manifest(engine)
    row: Row = {"check": "speed", "engine": f"{manifest.model.num_hidden_layers} layers", **dataclasses.asdict(report)}
    if report.gpu is not None:
        told = GpuEngine(
            manifest.model, report.gpu.weight_bytes, True, manifest.kv_layout, "fp16", manifest.prefill_max_tokens
        )
        row["formula_bytes"] = gpu_memory(told, prefill + decode).total
    return row


def transformers_row(source: Path, layers: int, prefill: int, decode: int, device: str = "cuda") -> Row:
    """The same layers in bfloat16 with transformers, weights as memory has them: speed alone."""
    import torch
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    raw = json.loads((source / "config.json").read_text())
    config = Llama4TextConfig(**{**raw.get("text_config", raw), "num_hidden_layers": layers})
    with torch.device("meta"):
        model = Llama4ForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device=device).eval()
    ids = torch.randint(0, config.vocab_size, (1, prefill), device=device)
    times: list[float] = []
    cache = None
    with torch.inference_mode():
        for step in range(decode + 1):
            began = time.perf_counter()
            out = model(ids if step == 0 else ids[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1)
            out.logits.float().cpu()  # waits for the GPU
            times.append(time.perf_counter() - began)
            cache = out.past_key_values
    return {
        "check": "transformers bf16",
        "engine": f"{layers} layers",
        "prefill_tokens": prefill,
        "prefill_tokens_per_second": prefill / times[0],
        "decode_tokens_per_second": 1 / statistics.median(times[1:]),
    }
