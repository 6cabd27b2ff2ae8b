"""`bench`: figures that make sense, bytes that can be counted by hand, refusals."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import cuda_stand_ins as stand_ins
from judged_engines import judged_engine
from l4export.benchmark.decode_weights import decode_weight_bytes
from l4export.benchmark.measure import BenchReport, bench
from l4export.benchmark.memory import read_bandwidth
from l4export.benchmark.step_profile import StepProfile, profile_steps, step_profile
from l4export.checkpoint.hf_config import config_from_hf
from l4export.checkpoint.sample import hf_config
from l4export.cli.bench import _show
from l4export.engine.manifest import load_manifest
from l4export.errors import InputError
from l4export.model.tensors import parameter_count
from workshop import Workshop

BANDWIDTH = 12e9


@pytest.fixture(autouse=True)
def quick_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l4export.benchmark.measure.read_bandwidth", lambda _threads: BANDWIDTH)


def weights(model: ir.Model) -> dict[str, int]:
    return {name: value.const_value.nbytes for name, value in model.graph.initializers.items()}  # type: ignore[union-attr]


@pytest.mark.parametrize("layout", ["static", "concat"])
def test_a_report(workshop: Workshop, layout: str) -> None:
    path = workshop.engine_path("scout", layout)
    steps: list[str] = []
    report = bench(path, prefill=40, decode=12, repeats=2, threads=1, on_step=steps.append)
    assert (report.threads, report.prefill_tokens, report.decode_tokens, report.repeats) == (1, 40, 12, 2)
    assert 0 < report.load_seconds < report.cold_first_token_seconds
    assert report.prefill_tokens_per_second == pytest.approx(40 / report.first_token_seconds)
    assert report.resident_loaded_bytes and report.resident_steady_bytes and report.resident_peak_bytes
    assert 0 < report.resident_private_bytes <= report.resident_steady_bytes <= report.resident_peak_bytes  # type: ignore[operator]
    assert report.read_bandwidth == BANDWIDTH
    share = report.decode_tokens_per_second * report.decode_weight_bytes / BANDWIDTH
    assert report.decode_bandwidth_share == pytest.approx(share)
    assert BenchReport(**json.loads(report.to_json())) == report
    assert steps[0] == "loading the engine" and "measuring, 2 of 2" in steps


def test_decode_weight_bytes_are_those_of_active_parameters(workshop: Workshop) -> None:
    """Counted another way: the config's active parameters, less the embedding, of which one row is read."""
    for variant in ("scout", "maverick", "guard", "mobile", "scout-top2"):
        model = ir.load(workshop.engine_path(variant, "static") / "decoder.onnx")
        config = workshop.engine(variant, "static").config
        rows = 0 if config.tie_word_embeddings else (config.vocab_size - 1) * config.hidden_size
        expected = 4 * (parameter_count(config).active - rows)
        counted = decode_weight_bytes(model, config)
        # constants of the graph: counters, one row of RoPE's angles
        assert expected <= counted <= expected + 2000, variant
        tables = {name: size for name, size in weights(model).items() if name.endswith("_cache")}
        assert counted + sum(tables.values()) < sum(weights(model).values()) or not config.moe_layers


def tensor(name: str, dtype: ir.DataType, *shape: int) -> ir.Value:
    raw = ir.tensor(np.zeros(shape, np.float32)) if dtype == ir.DataType.FLOAT else None
    packed = raw or ir.PackedTensor(np.zeros(int(np.prod(shape)) // 2, np.uint8), dtype, shape=ir.Shape(shape))
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=packed)


def test_rules_of_decode_weight_bytes() -> None:
    config = dataclasses.replace(
        config_from_hf(hf_config("scout", "tiny"), "scout"), num_local_experts=4, num_experts_per_tok=2
    )
    ids, x = ir.Value(name="ids"), ir.Value(name="x")
    codes, scales = tensor("codes", ir.DataType.UINT4, 64, 32), tensor("scales", ir.DataType.FLOAT, 64, 2)
    experts = tensor("experts", ir.DataType.UINT4, 4, 8, 8)
    expert_scales = tensor("expert_scales", ir.DataType.FLOAT, 4, 8)
    stored, factor = tensor("stored", ir.DataType.UINT4, 8, 8), tensor("factor", ir.DataType.FLOAT, 8)
    tied, unused = tensor("tied", ir.DataType.FLOAT, 64, 8), tensor("unused", ir.DataType.FLOAT, 1000)
    row = ir.node("GatherBlockQuantized", [codes, ids, scales], domain="com.microsoft")
    moe = ir.node("QMoE", [row.outputs[0], x, experts, expert_scales], domain="com.microsoft")
    dequantised = ir.node("DequantizeLinear", [stored, factor])
    product = ir.node("MatMul", [moe.outputs[0], dequantised.outputs[0]])
    lookup = ir.node("Gather", [tied, ids])
    head = ir.node("MatMul", [lookup.outputs[0], tied])
    initializers = [codes, scales, experts, expert_scales, stored, factor, tied, unused]
    graph = ir.Graph(
        [ids, x],
        [product.outputs[0], head.outputs[0]],
        nodes=[row, moe, dequantised, product, lookup, head],
        initializers=initializers,
    )
    expected = 16 + 8  # one row of codes and one of scales
    expected += (128 + 128) // 2  # two experts of four
    expected += 32 + 32  # through DequantizeLinear
    expected += 64 * 8 * 4  # the tied table, once, in full
    assert decode_weight_bytes(ir.Model(graph, ir_version=10), config) == expected


def test_read_bandwidth_is_plausible() -> None:
    assert 5e8 < read_bandwidth(1) < 1e12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefill": 250, "decode": 20}, "--prefill 250 --decode 20: .*max_context of 256"),
        ({"prefill": 0}, "--prefill 0: give at least 1"),
        ({"decode": -1}, "--decode -1: give at least 1"),
        ({"repeats": 0}, "--repeats 0: give at least 1"),
        ({"threads": 0}, "--threads 0: give at least 1"),
        ({"prefill": "5"}, "--prefill '5': give at least 1"),
        ({"decode": None}, "--decode None: give at least 1"),
        ({"repeats": True}, "--repeats True: give at least 1"),
    ],
)
def test_refusals(workshop: Workshop, options: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        bench(workshop.engine_path("scout", "static"), **options)  # type: ignore[arg-type]


def test_command_line(workshop: Workshop) -> None:
    path = workshop.engine_path("scout", "static")
    command = [sys.executable, "-m", "l4export", "bench", str(path), "--prefill", "20", "--decode", "4"]
    command += ["--repeats", "1", "--threads", "1"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    report = BenchReport(**json.loads(done.stdout)["details"])
    assert report.engine == str(path) and report.prefill_tokens == 20
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for words in ("prefill of 20 tokens", "decode of 4 tokens", "read bandwidth", "peak memory", "thread, 1 run"):
        assert words in shown
    refused = subprocess.run([*command, "--decode", "500"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "max_context" in refused.stderr
    refused = subprocess.run([*command, "--threads", "99999999999"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "--threads" in refused.stderr


# On a GPU ------------------------------------------------------------------------------------------------------------


def test_a_trace_of_steps(workshop: Workshop) -> None:
    """As ONNX Runtime writes it, of a CPU: every operator ran there, and no kernel on a GPU."""
    path = workshop.engine_path("guard", "chunked")
    profile = profile_steps(path, load_manifest(path), 5, 3, None)
    assert set(profile.operators) == {"CPUExecutionProvider"} and profile.operators["CPUExecutionProvider"] > 20
    assert profile.kernels == 0 and profile.gpu_seconds == 0 and 0 < profile.host_seconds < 10


def test_kernels_count_for_the_step_in_which_they_ran() -> None:
    def event(cat: str, name: str, ts: int, dur: int, **args: str) -> dict[str, object]:
        return {"cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}

    runs = [event("Session", "model_run", 1000 * n, 500) for n in (3, 1, 2)]
    kernels = [
        event("Kernel", "gemm", at, dur) for at, dur in ((1010, 99), (2010, 40), (2100, 60), (3001, 30), (3400, 50))
    ]
    nodes = [event("Node", "a_kernel_time", 3000, 9, provider="CUDA"), event("Node", "a_fence_before", 3000, 1)]
    profile = step_profile([*kernels, *runs, *nodes], 2)
    assert profile == StepProfile({"CUDA": 1}, 2, pytest.approx(90e-6), pytest.approx(500e-6))


def test_a_report_of_a_gpu(wide_scout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stand-ins: the figures add up, and the table has them."""
    judged_engine(wide_scout, tmp_path / "e")
    stand_ins.install(monkeypatch)
    report = bench(tmp_path / "e", prefill=20, decode=5, repeats=1)
    gpu = report.gpu
    assert gpu is not None and gpu.step is not None
    assert (gpu.name, gpu.compute_capability, gpu.cuda, gpu.steps) == ("Stand-in", "8.9", "13.0", "steps by CUDA graph")
    assert gpu.used_bytes == gpu.weight_bytes + gpu.cache_bytes + gpu.working_bytes
    share = report.decode_tokens_per_second * report.decode_weight_bytes / gpu.copy_bandwidth
    assert gpu.decode_bandwidth_share == pytest.approx(share)
    assert json.loads(report.to_json())["gpu"]["step"]["kernels"] == 0
    with redirect_stdout(io.StringIO()) as out:
        _show(report)
    for words in ("steps by CUDA graph", "copy on the GPU, read + written", "traced step: kernels", "Stand-in"):
        assert words in out.getvalue()
