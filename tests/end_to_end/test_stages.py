"""Every graph from the reference to the engine's computes the same."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from l4export.checkpoint import open_checkpoint
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.compiler.pipeline import pass_name, pipeline, run_passes
from l4export.compiler.plan import plan_build
from l4export.model.decoder import build_decoder
from l4export.quantization.cpu_operators import CPU_DOMAIN
from l4export.quantization.policy import Policy, Rule
from l4export.runtimes.onnxruntime.cpu_kernels import add_cpu_kernels
from l4export.targets import GraphOptions
from l4export.weights.recipes import Source
from workshop import LAYOUTS, VARIANTS, Workshop, assert_close, random_ids

CHUNK, PREFILL, TOTAL = 16, 40, 50


def _run(model: ir.Model, ids: np.ndarray, piece: int = PREFILL) -> np.ndarray:
    """Logits of a prefill in pieces and of single tokens after it, with caches that grow."""
    options = ort.SessionOptions()
    if CPU_DOMAIN in model.opset_imports:
        add_cpu_kernels(options)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    pasts = {value.name: value for value in model.graph.inputs if str(value.name).startswith("past")}
    caches = {name: np.zeros((1, v.shape[1], 0, v.shape[3]), np.float32) for name, v in pasts.items()}
    logits = []
    cuts = [*range(0, PREFILL, piece), *range(PREFILL, TOTAL + 1)]
    for start, stop in pairwise(cuts):
        feeds = {"input_ids": ids[:, start:stop], "attention_mask": np.ones((1, stop), np.int64), **caches}
        out, *presents = session.run(None, feeds)
        caches = dict(zip(caches, presents, strict=True))
        logits.append(out)
    return np.concatenate(logits, axis=1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_stage_computes_the_same(workshop: Workshop, variant: str, layout: str) -> None:
    checkpoint = open_checkpoint(workshop.checkpoint(variant))
    model = build_decoder(
        checkpoint.config, lambda name, shape: Source(checkpoint.tensor(name, shape)), ir.DataType.FLOAT
    )
    ids = random_ids((1, TOTAL))
    expected = workshop.reference(variant).logits(ids)
    seen = []

    def check(index: int, name: str, stage: ir.Model) -> None:
        assert_close(_run(stage, ids, CHUNK if layout == "chunked" else PREFILL), expected)
        seen.append(name)

    steps = pipeline("ort-cpu", GraphOptions(layout, 64))
    run_passes(model, steps, check)
    assert seen == ["reference", *(pass_name(type(step)) for step in steps)]


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("variant", ["scout", "scout-top2", "maverick"])
def test_every_stage_of_quantised_weights_computes_the_same(workshop: Workshop, variant: str) -> None:
    """From the codes on: by ONNX Runtime's operators, and piece by piece by l4export's own."""
    checkpoint = open_checkpoint(workshop.checkpoint(variant))
    model = build_decoder(
        checkpoint.config, lambda name, shape: Source(checkpoint.tensor(name, shape)), ir.DataType.FLOAT
    )
    ids = random_ids((1, TOTAL))
    found: dict[str, np.ndarray] = {}

    def check(index: int, name: str, stage: ir.Model) -> None:
        if found or name == "quantize_weights_for_onnxruntime":
            found[name] = _run(stage, ids)

    policy = Policy((Rule(("model.layers.*_proj*",), "int4", 32, symmetric=False),), accuracy_level=1)
    run_passes(model, pipeline("cpu", GraphOptions("static", 64, policy)), check)
    first, *others = found.values()
    assert [*found][1:5] == ["tile_products", "tile_experts", "fuse_gated_units", "absorb_shared_expert"]
    for logits in others:
        assert_close(logits, first, 1e-5)  # float32 in another order of summation


def test_values_keep_their_names_from_stage_to_stage(workshop: Workshop) -> None:
    checkpoint = open_checkpoint(workshop.checkpoint("scout"))
    model = build_decoder(
        checkpoint.config, lambda name, shape: Source(checkpoint.tensor(name, shape)), ir.DataType.FLOAT
    )
    names: list[set[str | None]] = []
    run_passes(
        model,
        pipeline("ort-cpu", GraphOptions("static", 64)),
        lambda index, name, stage: names.append({v.name for node in stage.graph for v in node.outputs}),
    )
    layer_ends = {f"/layers.{i}/mlp_residual" for i in range(4)} | {f"/layers.{i}/attn/Attention" for i in range(4)}
    assert all(layer_ends <= stage for stage in names)


def test_the_lowered_graph_is_valid_and_free_of_the_dialect(workshop: Workshop) -> None:
    planned = plan_build(workshop.checkpoint("scout"), BuildOptions())
    onnx.checker.check_model(ir.to_proto(planned.model))
    assert {node.domain for node in planned.model.graph} == {"", "com.microsoft"}
    assert not planned.model.functions
    names = [node.name for node in planned.model.graph]
    assert len(set(names)) == len(names)


def test_dump_ir_writes_runnable_stages(workshop: Workshop, tmp_path: Path) -> None:
    build(workshop.checkpoint("maverick"), tmp_path / "e", BuildOptions(dump_ir=tmp_path / "ir"))
    files = sorted(path.name for path in (tmp_path / "ir").iterdir())
    assert files[0] == "00-reference.onnx"
    assert files[-1] == "08-remove_unused.onnx"
    ids = random_ids((1, TOTAL))
    for name in (files[0], files[3], files[-1]):
        assert_close(_run(ir.load(tmp_path / "ir" / name), ids), workshop.reference("maverick").logits(ids))
