"""`--target tensorrt-rtx`: engines compiled on this machine, without a GPU, and every trap refused or avoided."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load_file

from l4export import runtimes
from l4export.cli import main
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.engine.manifest import verify_files
from l4export.engine.profiles import token_profiles
from l4export.errors import EnvironmentLacks, InputError
from l4export.inspection.dequantized_weights import dequantized_weights
from l4export.quantization.policy import standard_policy
from l4export.runtimes.tensorrt.plan import tensorrt_plan
from l4export.targets.tensorrt import compile as tensorrt_engine
from l4export.targets.tensorrt import compile_process as tensorrt_compile
from workshop import ROOT, VARIANTS, Workshop

pytest.importorskip("tensorrt_rtx")

EVERY = ("8.0", "8.9", "12.0")
QUANTIZATIONS = ("none", "int4", "int8", "fp8")


def options(quant: str = "none", dtype: str = "fp16", layout: str = "static", **changes: object) -> BuildOptions:
    # A block that is a whole row of int8, which only tiny models have, does not compile: hence blocks of 16.
    policy = standard_policy(quant, 16 if quant == "int8" else None)
    fixed = {
        "target": "tensorrt-rtx",
        "max_context": 64,
        "compute_capabilities": EVERY[1:] if quant == "fp8" else EVERY,
    }
    return BuildOptions(**{**fixed, "dtype": dtype, "kv_layout": layout, "policy": policy, **changes})  # type: ignore[arg-type]


# Engines -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "quant", "dtype", "layout"),
    [
        ("scout", "int4", "fp16", "static"),
        ("maverick-top2", "fp8", "fp16", "chunked"),
        ("mobile", "none", "bf16", "static"),
        ("guard", "int8", "fp32", "static"),
        ("maverick", "int4", "bf16", "chunked"),
    ],
)
def test_engines_are_compiled(
    workshop: Workshop, tmp_path: Path, variant: str, quant: str, dtype: str, layout: str
) -> None:
    manifest = build(workshop.checkpoint(variant), tmp_path / "e", options(quant, dtype, layout, layers=(2, 4)))
    assert manifest.files["decoder.engine"].bytes > 1_000_000
    assert manifest.options["decoder"]["compute_capabilities"] == list(EVERY[1:] if quant == "fp8" else EVERY)
    assert "genai_config.json" not in manifest.files
    verify_files(tmp_path / "e")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["static", "chunked"])
@pytest.mark.parametrize("quant", QUANTIZATIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_engines_of_every_variant_are_compiled(
    workshop: Workshop, tmp_path: Path, variant: str, quant: str, layout: str
) -> None:
    build(workshop.checkpoint(variant), tmp_path / "e", options(quant, layout=layout))


def test_an_engine_that_is_up_to_date_is_left_alone_and_not_run_without_a_gpu(
    workshop: Workshop, tmp_path: Path
) -> None:
    notices: list[str] = []
    first = build(workshop.checkpoint("mobile"), tmp_path / "e", options(layers=(0, 1)))
    again = build(
        workshop.checkpoint("mobile"), tmp_path / "e", options(layers=(0, 1), force=True), on_notice=notices.append
    )
    assert again == first and "up to date" in notices[0]
    with pytest.raises(EnvironmentLacks, match="--target onnx"):
        runtimes.load(tmp_path / "e")


# The graph -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("layout", ["static", "chunked"])
def test_every_attention_may_be_decomposed_and_every_cache_has_its_size(
    workshop: Workshop, dtype: str, layout: str
) -> None:
    graph = plan_build(workshop.checkpoint("scout"), options(dtype=dtype, layout=layout)).model.graph
    attention = [node for node in graph if node.op_type == "Attention"]
    assert len(attention) == 4
    assert all(node.attributes.get_int("TRT_decomposable") == 1 for node in attention)
    assert all(node.attributes.get_int("is_causal") == 0 and len(node.inputs) == 4 for node in attention)
    slots = [value.shape[2] for value in graph.inputs if "past" in str(value.name) and value.shape is not None]
    assert slots == [16 if layout == "chunked" else 64] * 6 + [64] * 2


def test_no_input_has_a_default_and_nothing_is_refused_in_the_graph(workshop: Workshop) -> None:
    for layout in ("static", "chunked"):
        graph = plan_build(workshop.checkpoint("scout"), options(layout=layout)).model.graph
        assert {"logits_to_keep", "mask_start", "cache_start"} <= {value.name for value in graph.inputs}
        assert not {value.name for value in graph.inputs} & set(graph.initializers)
        assert not [node.name for node in graph if "_must_" in str(node.name)]


def test_what_onnxruntime_refuses_is_only_the_attribute(workshop: Workshop, tmp_path: Path) -> None:
    """Without it the very graph that TensorRT compiles runs on a CPU and says what --target onnx says."""
    build(workshop.checkpoint("scout"), tmp_path / "onnx", BuildOptions(target="onnx", max_context=64, dtype="fp16"))
    session = runtimes.load(tmp_path / "onnx").session()
    ids = np.random.default_rng(0).integers(0, 256, (1, 40))
    expected = session.append(ids[0])
    model = plan_build(workshop.checkpoint("scout"), options()).model
    for node in model.graph:
        node.attributes.pop("TRT_decomposable", None)
    feeds = {
        f"past_key_values.{i}.{kind}": np.zeros((1, 2, 64, 16), np.float16)
        for i in range(4)
        for kind in ("key", "value")
    }
    feeds |= {"input_ids": ids, "attention_mask": np.ones_like(ids), "logits_to_keep": np.asarray(0)}
    feeds |= {"mask_start": np.zeros(1, np.int64), "cache_start": np.zeros(1, np.int64)}
    proto = ir.to_proto(model).SerializeToString()
    logits = ort.InferenceSession(proto, providers=["CPUExecutionProvider"]).run(["logits"], feeds)[0]
    np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize("quant", QUANTIZATIONS[1:])
def test_scales_are_bfloat16_where_activations_are(workshop: Workshop, tmp_path: Path, quant: str) -> None:
    """Codes are rounded for them: half a step away from the checkpoint's weights at most."""
    checkpoint = workshop.checkpoint("scout")
    fast = options(quant, "bf16", compute_capabilities=("8.9",), layers=(0, 1))
    build(checkpoint, tmp_path / "e", fast)
    weights = load_file(checkpoint / "model.safetensors")
    graph = ir.load(tmp_path / "e" / "decoder.onnx").graph
    nodes = [node for node in graph if node.op_type == "DequantizeLinear"]
    found = dict(dequantized_weights(tmp_path / "e"))
    assert len(nodes) == len(found)
    for node, (name, values) in zip(nodes, found.items(), strict=True):
        tensor = node.inputs[1].const_value  # type: ignore[union-attr]
        assert tensor is not None and tensor.dtype == ir.DataType.BFLOAT16
        step = tensor.numpy().max().astype(np.float32) * (32 if quant == "fp8" else 1)  # from 256 to 448 fp8's are 32
        assert np.abs(values - weights[name]).max() <= step / 2 * (1 + 1e-6)
        assert (values != 0).any()


def test_profiles_cover_what_a_session_feeds(workshop: Workshop) -> None:
    planned = plan_build(workshop.checkpoint("scout"), options(layout="chunked"))
    ranges = token_profiles(True, "chunked", 16)
    decode, prefill = (tensorrt_compile.profile_shapes(planned.model.graph.inputs, tokens) for tokens in ranges)
    assert decode["input_ids"] == decode["attention_mask"] == ([1, 1], [1, 1], [1, 2])
    assert prefill["input_ids"] == ([1, 2], [1, 16], [1, 16])
    assert prefill["past_key_values.0.key"] == ([1, 2, 16, 16],) * 3
    assert prefill["past_key_values.3.key"] == ([1, 2, 64, 16],) * 3
    assert prefill["mask_start"] == ([1], [1], [1])
    assert prefill["logits_to_keep"] == ([0], [1], [1])
    assert token_profiles(True, "static", 16) == [(1, 1, 1), (2, 16, 16)]
    assert token_profiles(False, "static", 16) == [(1, 1, 16)]  # or float weights are there twice


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"compute_capabilities": ()}, "name --compute-capability"),
        ({"compute_capabilities": ("9.0",)}, "9.0 is not one of 7.5, 8.0"),
        ({"compute_capabilities": ("8.9", "8.0"), "policy": standard_policy("fp8")}, "8.0 has no fp8; fp8 needs 8.9"),
        ({"compute_capabilities": ("7.5",), "policy": standard_policy("int4")}, "7.5 has no int4"),
        ({"compute_capabilities": ("7.5",), "dtype": "bf16"}, "7.5 has no bf16"),
        ({"kv_layout": "concat"}, "updates caches in place"),
        ({"target": "onnx"}, "--compute-capability is for --target tensorrt-rtx"),
        ({"target": "tensorrt"}, "--compute-capability is for --target tensorrt-rtx"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(
    workshop: Workshop, tmp_path: Path, changes: dict[str, object], word: str
) -> None:
    with pytest.raises(InputError, match=word):
        build(workshop.checkpoint("scout"), tmp_path / "e", options(**changes))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    checkpoint, engine = str(workshop.checkpoint("mobile")), str(tmp_path / "e")
    arguments = ["build", checkpoint, "-o", engine, "--target", "tensorrt-rtx", "--compute-capability", "8.9"]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--dtype", "fp16"])
    assert caught.value.code == 3
    assert "pip install 'l4export[tensorrt-rtx]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_target_tensorrt_looks_for_the_driver_before_anything_else(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", load)
    with pytest.raises(EnvironmentLacks, match="no NVIDIA driver"):
        build(workshop.checkpoint("mobile"), tmp_path / "e", options(target="tensorrt", compute_capabilities=()))
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(cuInit=lambda flags: 100))
    with pytest.raises(EnvironmentLacks, match="CUDA error 100"):
        build(workshop.checkpoint("mobile"), tmp_path / "e", options(target="tensorrt", compute_capabilities=()))
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(cuInit=lambda flags: 0))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EnvironmentLacks, match="needs the Python package tensorrt: install"):
        build(workshop.checkpoint("mobile"), tmp_path / "e", options(target="tensorrt", compute_capabilities=()))
    assert list(tmp_path.iterdir()) == []


SHIM = """
import tensorrt_rtx
from tensorrt_rtx import *
__version__ = {version!r}
del ComputeCapability, EngineValidity, IRuntimeCache, IRuntimeConfig
"""


@pytest.fixture
def enterprise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A module `tensorrt` of a version: TensorRT for RTX without what it has alone, on a machine with a driver.

    In the child process too, so that --target tensorrt goes all its way, but for the GPU.
    """

    def install(version: str) -> None:
        (tmp_path / "shim").mkdir(exist_ok=True)
        (tmp_path / "shim/tensorrt.py").write_text(SHIM.format(version=version))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "shim"))
        monkeypatch.syspath_prepend(tmp_path / "shim")
        monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(cuInit=lambda flags: 0))

    return install


def test_target_tensorrt_compiles_the_same_graph_in_the_same_profiles(
    workshop: Workshop, tmp_path: Path, enterprise: Callable[[str], None]
) -> None:
    checkpoint, changes = workshop.checkpoint("scout"), {"layers": (2, 4), "layout": "chunked"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("l4export.targets.tensorrt.finish.compile_engine", lambda *a: a[2].write_bytes(b"not compiled"))
        rtx = build(checkpoint, tmp_path / "rtx", options("int4", **changes))  # type: ignore[arg-type]
    enterprise("11.4.0")
    same = build(checkpoint, tmp_path / "e", options("int4", target="tensorrt", compute_capabilities=(), **changes))  # type: ignore[arg-type]
    assert same.files["decoder.engine"].bytes > 500_000
    assert "compute_capabilities" not in same.options["decoder"]
    for name in ("passes", "prefill_max_tokens", "kv_layers"):
        assert getattr(same, name) == getattr(rtx, name)
    assert dataclasses.replace(same.decoder, runtime=rtx.decoder.runtime) == rtx.decoder
    assert same.files["decoder.onnx"] == rtx.files["decoder.onnx"]
    assert tensorrt_plan(same) == tensorrt_plan(rtx)


def test_a_tensorrt_that_chooses_types_itself_is_refused(
    workshop: Workshop, tmp_path: Path, enterprise: Callable[[str], None]
) -> None:
    enterprise("10.16.1")
    with pytest.raises(EnvironmentLacks, match=r"tensorrt 10.16.1 is older than 11: install TensorRT 11"):
        build(workshop.checkpoint("mobile"), tmp_path / "e", options(target="tensorrt", compute_capabilities=()))


def compiled(
    tmp_path: Path,
    *nodes: onnx.NodeProto,
    weights: list[onnx.TensorProto],
    capability: str = "8.9",
    dtype: int = TensorProto.FLOAT16,
) -> None:
    """Compile a graph x [1, 4] -> y."""
    x = helper.make_tensor_value_info("x", dtype, ["batch", 4])
    y = helper.make_tensor_value_info("y", dtype, None)
    model = helper.make_model(
        helper.make_graph(list(nodes), "g", [x], [y], weights),
        opset_imports=[helper.make_opsetid("", 24)],
        ir_version=11,
    )
    onnx.save(model, tmp_path / "m.onnx")
    tensorrt_engine.compile_engine(
        "tensorrt-rtx", tmp_path / "m.onnx", tmp_path / "m.engine", (capability,), [(1, 1, 2)]
    )


KINDS = {"int8": TensorProto.INT8, "int4": TensorProto.INT4, "fp8": TensorProto.FLOAT8E4M3FN}
FLOATS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*FLOATS, *KINDS])
@pytest.mark.parametrize("capability", tensorrt_engine.CAPABILITIES)
def test_the_capabilities_are_those_of_the_compiler(tmp_path: Path, capability: str, kind: str) -> None:
    dtype = FLOATS.get(kind, TensorProto.FLOAT16)
    if kind in FLOATS:
        weights, nodes = [helper.make_tensor("w", dtype, [4, 16], [0.5] * 64)], []
    else:
        codes = helper.make_tensor("codes", KINDS[kind], [4, 16], [1] * 64)
        weights = [codes, helper.make_tensor("scales", dtype, [4, 1], [1.0] * 4)]
        nodes = [helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], axis=1, block_size=16)]
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    expected = kind in tensorrt_engine.CAPABILITIES[capability]
    with contextlib.nullcontext() if expected else pytest.raises(InputError, match="cannot compile"):
        compiled(tmp_path, *nodes, product, weights=weights, capability=capability, dtype=dtype)


def test_the_documented_table_is_the_programs() -> None:
    text = (ROOT / "docs/guide/targets.md").read_text()
    kinds, found = ["fp32", "fp16", "bf16", "int8", "int4", "fp8"], {}
    for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()):
        if cells[0][:1].isdigit() and cells[-1] in {"yes", "-"}:
            formats = frozenset(kind for kind, cell in zip(kinds, cells[1:], strict=True) if cell == "yes")
            found |= dict.fromkeys(cells[0].split(", "), formats)
    assert found == tensorrt_engine.CAPABILITIES


TRAPS = {
    "zero points": (TensorProto.INT4, 1.0, 3, r": the_weight \(DequantizeLinear\): .*[Zz]ero.point"),
    "scales below zero": (TensorProto.INT8, -1.0, None, r": the_weight \(DequantizeLinear\): .*must all be positive"),
    "uint4": (TensorProto.UINT4, 1.0, None, "Failed to import initializer: codes"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_node_that_tensorrt_refuses_is_named_with_its_operator_and_reason(tmp_path: Path, trap: str) -> None:
    """These are why standard ONNX engines have symmetric, signed codes and positive scales."""
    kind, scale, zero_point, words = TRAPS[trap]
    weights = [
        helper.make_tensor("codes", kind, [4, 16], [0] * 64),
        helper.make_tensor("scales", TensorProto.FLOAT16, [4, 1], [scale] * 4),
        *([] if zero_point is None else [helper.make_tensor("zeros", kind, [4, 1], [zero_point] * 4)]),
    ]
    names = [tensor.name for tensor in weights]
    dequantize = helper.make_node("DequantizeLinear", names, ["w"], "the_weight", axis=1, block_size=16)
    product = helper.make_node("MatMul", ["x", "w"], ["y"], "the_product")
    with pytest.raises(InputError, match=rf"refuses 1 of the graph's nodes.*{words}"):
        compiled(tmp_path, dequantize, product, weights=weights)
    assert not (tmp_path / "m.engine").exists()


def test_a_crash_of_the_compiler_is_an_error_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    with pytest.raises(InputError, match="ended by SIGSEGV"):
        tensorrt_engine.compile_engine(
            "tensorrt-rtx", tmp_path / "m.onnx", tmp_path / "m.engine", ("8.9",), [(1, 1, 2)]
        )
