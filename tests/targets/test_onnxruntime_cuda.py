"""`--target ort-cuda`, where there is no GPU: its graph's numbers on the CPU provider, and what is refused."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from cuda_stand_ins import Driver
from l4export import runtimes
from l4export.cli import main
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.engine.manifest import load_manifest
from l4export.errors import EnvironmentLacks, InputError
from l4export.inspection.dequantized_weights import dequantized_weights
from l4export.parity.logits import compare_logits
from l4export.parity.whole_model import check_parity
from l4export.quantization.policy import Policy, Rule, standard_policy
from l4export.reference.transformers_model import HFReference
from l4export.runtimes.cache.device_cache import DeviceCache
from l4export.runtimes.onnxruntime.cuda_session import open_on_cuda
from l4export.runtimes.onnxruntime.device import OnnxRuntimeDevice
from l4export.runtimes.onnxruntime.engine import OnnxRuntimeEngine, session_options
from l4export.runtimes.onnxruntime.execution import cuda_plan
from l4export.runtimes.session import Session
from workshop import Workshop, assert_close, random_ids

FP16 = 2e-2
"""float16 has 11 bits, and a logit is a sum of thousands of products: differences of 1e-3 to 1e-2 of the largest."""


def options(quant: str = "none", layout: str = "chunked", **changes: Any) -> BuildOptions:
    fixed = {"target": "ort-cuda", "dtype": "fp16", "kv_layout": layout, "max_context": 96}
    return BuildOptions(**{**fixed, "policy": standard_policy(quant), **changes})


@pytest.fixture(scope="module")
def quantized(wide_scout: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(quant: str) -> Path:
        if quant not in made:
            made[quant] = tmp_path_factory.mktemp("cuda") / quant
            build(wide_scout, made[quant], options(quant))
        return made[quant]

    return make


def logits(session: Session, ids: np.ndarray) -> np.ndarray:
    """50 tokens at once, 5 in the middle of a chunk, the rest one by one; 85 tokens cross five boundaries."""
    pieces = [ids[:50], ids[50:55], *ids[55:, None]]
    return np.concatenate([session.append(piece)[0] for piece in pieces])


# Numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["scout", "maverick-top2", "guard"])
def test_the_graph_computes_what_pytorch_computes(workshop: Workshop, tmp_path: Path, variant: str) -> None:
    build(workshop.checkpoint(variant), tmp_path / "e", options())
    ids = random_ids(85)
    got = logits(runtimes.load(tmp_path / "e", threads=1, provider="cpu").session(), ids)
    assert_close(got, workshop.reference(variant).logits(ids[None])[0], FP16)


@pytest.mark.parametrize("quant", ["int4", "int8"])
def test_quantised_graphs_compute_what_their_weights_say(
    wide_scout: Path, quantized: Callable[[str], Path], quant: str
) -> None:
    ids, reference = random_ids(85), HFReference(wide_scout)
    reference.replace(dequantized_weights(quantized(quant)))
    got = logits(runtimes.load(quantized(quant), threads=1, provider="cpu").session(), ids)
    expected = reference.logits(ids[None])[0]
    if quant == "int4":
        assert_close(got, expected, FP16)
    else:  # the CPU multiplies experts of 8 bits with activations rounded to int8, and a near tie then turns elsewhere
        assert compare_logits(expected, got).kl_mean < 5e-2


def test_rows_on_a_device_are_those_of_the_host(quantized: Callable[[str], Path]) -> None:
    """What a GPU's memory needs, buffers and copies by address, with the CPU provider's memory as the device."""
    engine = runtimes.load(quantized("int4"), threads=1, provider="cpu")
    assert isinstance(engine, OnnxRuntimeEngine)
    plan = cuda_plan(engine.manifest)
    (part,) = plan.parts
    assert [tensor.name for tensor in part if tensor.on_host] == ["logits_to_keep"]

    def new_cache(manifest: Any, batch: int, capacity: int) -> DeviceCache:
        return DeviceCache(OnnxRuntimeDevice([engine.inference], "cpu"), plan, manifest, batch, capacity)

    pair = Session(new_cache, engine.manifest, 3, 90), engine.session(batch=3, capacity=90)
    steps: list[Any] = [[random_ids(n, seed=n) for n in (20, 33, 1)], [random_ids(n, seed=n) for n in (0, 5, 40)]]
    steps += [[[1], [2], [3]], [[4], [], [6]], [[7], [8], [9]]]
    for step in steps:
        np.testing.assert_array_equal(*(session.append(step) for session in pair))
    assert pair[0].kv_bytes == pair[1].kv_bytes
    for rows in zip(pair[0].tokens(1), pair[1].tokens(1), strict=True):
        np.testing.assert_array_equal(*rows)
    forks = [session.fork([2, 1]) for session in pair]
    np.testing.assert_array_equal(*(fork.append([[1], [2]]) for fork in forks))
    for session, fork in zip(pair, forks, strict=True):
        session.copy_row(0, session, 1)
        session.copy_row(2, fork, 0)
    np.testing.assert_array_equal(*(session.append([[3], [], [4]]) for session in pair))


# Forms ---------------------------------------------------------------------------------------------------------------


def test_only_forms_that_cuda_has(wide_scout: Path) -> None:
    model = plan_build(wide_scout, options("int4")).model
    nodes = {kind: [node for node in model.graph if node.op_type == kind] for kind in ("GroupQueryAttention", "QMoE")}
    assert len(nodes["GroupQueryAttention"]) == len(nodes["QMoE"]) == 4
    for node in nodes["GroupQueryAttention"]:
        assert not any(node.inputs[9:14]), "attention_bias, which the CUDA kernel refuses"
        assert {value.dtype for value in node.inputs[3:5] if value is not None} == {ir.DataType.FLOAT16}
    for node in nodes["QMoE"]:
        assert node.attributes.get_int("weights_prepacked") == -1
        assert node.attributes.get_int("block_size") == 64
    # A Gather out of bounds is no error on a GPU: nothing may be left to it.
    assert not [node.name for node in model.graph if "_must_" in str(node.name)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "fp32"}, "--dtype fp32: --target ort-cuda computes in fp16"),
        ({"dtype": "bf16"}, "--dtype bf16: --target ort-cuda computes in fp16"),
        ({"policy": standard_policy("fp8")}, "--quant fp8: --target ort-cuda has no documented kernel"),
        ({"kv_layout": "static"}, "a mask that GroupQueryAttention does not take on CUDA; use --kv-layout chunked"),
        ({"kv_layout": "concat"}, "--target ort-cuda updates caches in place"),
        ({"kv_dtype": "int8"}, "--target ort-cuda has caches of --dtype"),
        ({"policy": standard_policy("int4")}, r"experts in blocks of 32, which is not 64 or 128"),
        ({"compute_capabilities": ("8.9",)}, "--compute-capability is for --target tensorrt-rtx"),
    ],
)
def test_what_is_not_known_to_be_right_is_refused(
    workshop: Workshop, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        build(workshop.checkpoint("scout"), tmp_path / "e", options(**changes))
    assert list(tmp_path.iterdir()) == []


def test_what_may_be_is_built(workshop: Workshop) -> None:
    """A static cache no longer than a chunk needs no mask; float experts need no blocks; a dense model has none."""
    dense = Policy((Rule(("model.layers.*.self_attn.*_proj.weight",), "int4"),))
    plan_build(workshop.checkpoint("scout"), options(layout="static", max_context=16, policy=dense))
    plan_build(workshop.checkpoint("guard"), options("int4"))


# Providers -----------------------------------------------------------------------------------------------------------


def test_another_provider_is_never_taken_in_silence(
    quantized: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def no_driver(name: str) -> object:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    with pytest.raises(EnvironmentLacks, match=r"there is no NVIDIA driver .*--provider cpu"):
        runtimes.load(quantized("int4"))
    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    with pytest.raises(EnvironmentLacks, match=r"has no CUDAExecutionProvider.*pip install 'l4export\[cuda\]'"):
        runtimes.load(quantized("int4"))
    with pytest.warns(UserWarning), pytest.raises(EnvironmentLacks, match="gave CPUExecutionProvider instead of CUDA"):
        open_on_cuda(quantized("int4") / "decoder.onnx", session_options(1))


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_providers_that_cannot_be_asked_for(quantized: Callable[[str], Path], provider: str) -> None:
    with pytest.raises(InputError, match="cannot be executed by"):
        runtimes.load(quantized("int4"), provider=provider)


def test_parity_says_what_it_ran_on(wide_scout: Path, quantized: Callable[[str], Path], workshop: Workshop) -> None:
    report = check_parity(quantized("int4"), wide_scout, 50, 12, dequantized=True, provider="cpu")
    assert report.passed and report.chunk_boundaries == 3
    assert report.provider == "CPUExecutionProvider instead of CUDAExecutionProvider"
    other = check_parity(workshop.engine_path("guard", "static"), workshop.checkpoint("guard"), 10, 2)
    assert other.provider == "CPUExecutionProvider"


def test_the_command_line(
    wide_scout: Path, quantized: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def code(*arguments: str) -> int:
        with pytest.raises(SystemExit) as caught:
            main([*arguments])
        return int(str(caught.value.code))

    engine = tmp_path / "e"
    assert code("build", str(wide_scout), "-o", str(engine), "--target", "ort-cuda", "--kv-layout", "chunked") == 0
    assert load_manifest(engine).precision["compute"] == "fp16"
    assert not (engine / "genai_config.json").exists()
    compare = ("parity", str(engine), "--reference", str(wide_scout), "--prefill", "20", "--decode", "2")
    for command in (("run", str(engine), "--token-ids", "1"), ("bench", str(engine), "--prefill", "8"), compare):
        capsys.readouterr()
        assert code(*command) == 3
        assert (
            "an ort-cuda engine runs on an NVIDIA GPU" in (lines := capsys.readouterr().err) and lines.count("\n") == 1
        )
    assert code(*compare, "--stream") == 2
    assert code(*compare, "--provider", "cpu", "--json") == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["identity"]["provider"] == "CPUExecutionProvider instead of CUDAExecutionProvider"
    assert code(*compare, "--provider", "cpu") == 0
    assert "executed on CPUExecutionProvider instead of CUDAExecutionProvider" in capsys.readouterr().out
