"""A decoder cut into engines of consecutive layers: a chain says what the whole says, and no weight is there twice."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from l4export.cli import main
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.engine.manifest import EnginePart, load_manifest, verify_files
from l4export.errors import EnvironmentLacks, InputError
from l4export.machine import available_memory
from l4export.quantization.policy import standard_policy
from l4export.targets.tensorrt import compile as tensorrt_engine
from l4export.targets.tensorrt.compile import compile_bytes
from l4export.targets.tensorrt.parts import constant_bytes, cut_layers, layer_ranges
from workshop import VARIANTS, Workshop, random_ids

CHUNK, PREFILL, TOTAL, CONTEXT = 16, 40, 70, 80
Arrays = dict[str, Any]


def options(layout: str = "static", quant: str = "int4", **changes: Any) -> BuildOptions:
    policy = standard_policy(quant)
    return BuildOptions(**{"target": "onnx", "kv_layout": layout, "max_context": CONTEXT, "policy": policy, **changes})


def loaded(model: ir.Model, folder: Path | None = None) -> ort.InferenceSession:
    """On ONNX Runtime's CPU provider, which refuses the attribute that is for TensorRT."""
    for node in model.graph:
        node.attributes.pop("TRT_decomposable", None)
    chosen: Any = ort.SessionOptions()
    chosen.log_severity_level = 4
    # Operator by operator: what is fused, and in which type it is summed, depends on what lies next to it.
    chosen.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if folder:
        chosen.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    proto = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(proto, chosen, providers=["CPUExecutionProvider"])


def logits(sessions: list[ort.InferenceSession], ids: np.ndarray, piece: int) -> np.ndarray:
    """What a chain of parts says of a prefill in pieces, and of single tokens behind it."""
    floats = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    sizes = {"batch": 1, "capacity": CONTEXT, "chunk_capacity": CHUNK}
    pasts = [value for session in sessions for value in session.get_inputs() if "past" in value.name]
    caches: Arrays = {
        value.name: np.zeros([sizes.get(size, size) for size in value.shape], floats[value.type]) for value in pasts
    }
    found = []
    for start, stop in pairwise([*range(0, PREFILL, piece), *range(PREFILL, TOTAL + 1)]):
        new = ids[:, start:stop]
        held: Arrays = {"input_ids": new, "attention_mask": np.ones_like(new), **caches}
        held |= {"mask_start": np.asarray([start]), "cache_start": np.asarray([0]), "logits_to_keep": np.asarray(0)}
        for session in sessions:
            names = [value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())]
            outputs = session.run(None, {name: held[name] for name in names})
            held |= {value.name: output for value, output in zip(session.get_outputs(), outputs, strict=True)}
        caches = {name: held[name.replace("past_key_values", "present")] for name in caches}
        found.append(held["logits"])
    return np.concatenate(found, axis=1)


def model_of(graph: ir.Graph) -> ir.Model:
    return ir.Model(graph, ir_version=11)


# Graphs --------------------------------------------------------------------------------------------------------------


CUTS = {"each layer": [(0, 1), (1, 2), (2, 3), (3, 4)], "kinds apart": [(0, 3), (3, 4)]}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("layout", ["static", "chunked"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_in_a_chain_say_what_the_whole_says(workshop: Workshop, variant: str, layout: str, cut: str) -> None:
    """Prefill and decode past four boundaries, to the bit: the same operators on the same numbers."""
    model = plan_build(workshop.checkpoint(variant), options(layout)).model
    parts = [loaded(model_of(cut_layers(model.graph, layers))) for layers in CUTS[cut]]
    ids = random_ids((1, TOTAL))
    piece = CHUNK if layout == "chunked" else PREFILL
    np.testing.assert_array_equal(logits(parts, ids, piece), logits([loaded(model)], ids, piece))


@pytest.mark.parametrize("layout", ["static", "chunked"])
def test_a_parts_interface(workshop: Workshop, layout: str) -> None:
    graph = plan_build(workshop.checkpoint("scout"), options(layout)).model.graph
    first, middle, last = (cut_layers(graph, layers) for layers in ((0, 1), (1, 3), (3, 4)))
    shared = {"input_ids", "attention_mask", "mask_start", "cache_start"}

    def caches(kind: str, *layers: int) -> set[str]:
        return {f"{kind}.{layer}.{part}" for layer in layers for part in ("key", "value")}

    def names(values: Any) -> list[str]:
        return [str(value.name) for value in values]

    assert names(first.inputs)[0] == "input_ids"
    assert set(names(first.inputs)) == shared | caches("past_key_values", 0)
    assert names(first.outputs) == ["hidden_states.1", "present.0.key", "present.0.value"]
    assert names(middle.inputs)[0] == "hidden_states.1"
    assert set(names(middle.inputs)) == shared | caches("past_key_values", 1, 2) | {"hidden_states.1"}
    assert names(last.inputs)[0] == "hidden_states.3"
    assert names(last.outputs) == ["logits", "present.3.key", "present.3.value"]
    assert "logits_to_keep" in names(last.inputs) and "logits_to_keep" not in names(middle.inputs)
    for value in (first.outputs[0], middle.inputs[0]):
        assert value.dtype == ir.DataType.FLOAT and value.shape == ir.Shape(["batch", "sequence", 64])


@pytest.mark.parametrize("variant", ["scout", "mobile"])
def test_no_weight_is_in_two_parts_but_a_tied_embedding(workshop: Workshop, variant: str) -> None:
    graph = plan_build(workshop.checkpoint(variant), options()).model.graph
    held = [set(cut_layers(graph, layers).initializers) for layers in CUTS["each layer"]]
    weights = {name for name in graph.initializers if name.startswith(("model.", "lm_head."))}
    assert weights <= set.union(*held)
    twice = {name for name in weights if sum(name in names for names in held) > 1}
    tied = {"model.embed_tokens.weight.codes", "model.embed_tokens.weight.scales"}
    assert twice == (tied if variant == "mobile" else set())
    assert not twice or twice <= held[0] & held[-1]


def test_cutting_a_graph_leaves_it_as_it_was(workshop: Workshop) -> None:
    model = plan_build(workshop.checkpoint("scout"), options()).model
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    first, second = (ir.to_proto(model_of(cut_layers(model.graph, (1, 3)))) for _ in range(2))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert first == second


# Ranges --------------------------------------------------------------------------------------------------------------


def test_ranges_are_as_long_as_the_budget_allows(workshop: Workshop) -> None:
    graph = plan_build(workshop.checkpoint("scout"), options()).model.graph

    def needed(*layers: int) -> int:
        return compile_bytes(sum(constant_bytes(cut_layers(graph, (layer, layer + 1))) for layer in layers))

    whole = compile_bytes(constant_bytes(graph))
    assert layer_ranges(graph, None) == layer_ranges(graph, whole) == ((0, 4),)
    assert layer_ranges(graph, whole - 1) == ((0, 3), (3, 4))
    assert layer_ranges(graph, needed(2, 3)) == ((0, 2), (2, 4))
    assert layer_ranges(graph, needed(2, 3) - 1) == ((0, 2), (2, 3), (3, 4))
    least = max(needed(0), needed(3))
    assert layer_ranges(graph, least) == ((0, 1), (1, 2), (2, 3), (3, 4))
    with pytest.raises(InputError, match=rf"--memory-budget {least - 1:,}: to compile layer . takes {least:,} bytes"):
        layer_ranges(graph, least - 1)


# Engines -------------------------------------------------------------------------------------------------------------


def rtx(**changes: Any) -> BuildOptions:
    """In float32: ONNX Runtime computes float16 as float32 and rounds wherever a graph ends."""
    return options(target="tensorrt-rtx", compute_capabilities=("8.9",), **changes)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that succeeds prints."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0
    return capsys.readouterr().out


def split_budget(checkpoint: Path) -> int:
    """One byte less than the whole takes."""
    return compile_bytes(constant_bytes(plan_build(checkpoint, rtx()).model.graph)) - 1


def test_an_engine_too_large_for_the_budget_is_compiled_in_parts(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    checkpoint, folder = workshop.checkpoint("scout"), tmp_path / "e"
    manifest = build(checkpoint, folder, rtx(memory_budget=split_budget(checkpoint)))
    assert [part.layers for part in manifest.decoder.parts] == [(0, 3), (3, 4)]
    assert [part.engine for part in manifest.decoder.parts] == [f"decoder-0000{i}-of-00002.engine" for i in (1, 2)]
    assert [part.graph for part in manifest.decoder.parts] == [f"decoder-0000{i}-of-00002.onnx" for i in (1, 2)]
    assert "decoder.onnx" in manifest.files and "decoder.engine" not in manifest.files
    assert load_manifest(folder).to_json() == verify_files(folder).to_json() == manifest.to_json()

    def chain(*names: str) -> list[ort.InferenceSession]:
        return [loaded(ir.load(folder / name), folder) for name in names]

    parts, ids = chain(*(part.graph for part in manifest.decoder.parts)), random_ids((1, TOTAL))
    for part, session in zip(manifest.decoder.parts, parts, strict=True):
        for told, values in ((part.inputs, session.get_inputs()), (part.outputs, session.get_outputs())):
            assert [(v.name, list(v.shape)) for v in told] == [(v.name, v.shape) for v in values]
    np.testing.assert_array_equal(logits(parts, ids, PREFILL), logits(chain("decoder.onnx"), ids, PREFILL))
    engines = json.loads(said(capsys, "inspect", str(folder), "--json"))["engines"]
    assert engines == {"decoder-00001-of-00002.engine": "layers 0:3", "decoder-00002-of-00002.engine": "layers 3:4"}
    assert "decoder-00002-of-00002.engine  layers 3:4" in said(capsys, "inspect", str(folder))


def test_one_engine_is_one_part(workshop: Workshop, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    manifest = build(workshop.checkpoint("mobile"), tmp_path / "e", rtx(layers=(0, 2)))
    (part,) = manifest.decoder.parts
    assert part == EnginePart(
        (0, 2), "decoder.onnx", "decoder.engine", manifest.decoder.inputs, manifest.decoder.outputs
    )


def test_only_what_is_compiled_has_parts(workshop: Workshop) -> None:
    assert plan_build(workshop.checkpoint("scout"), options(memory_budget=10**8)).parts == ()
    assert load_manifest(workshop.engine_path("scout", "static")).decoder.parts == ()


def test_parts_are_planned_without_compiling(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = workshop.checkpoint("scout")
    arguments = ["build", str(checkpoint), "-o", str(tmp_path / "e"), "--target", "tensorrt-rtx"]
    arguments += ["--compute-capability", "8.9", "--quant", "int4", "--max-context", "80", "--dry-run"]
    budget = str(split_budget(checkpoint))
    assert json.loads(said(capsys, *arguments, "--memory-budget", budget, "--json"))["parts"] == [[0, 3], [3, 4]]
    assert "engines of the layers 0:3, 3:4" in said(capsys, *arguments, "--memory-budget", budget)
    assert "engines of" not in said(capsys, *arguments)


def test_memory_that_is_not_there_is_refused_before_anything_is_written(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    checkpoint = workshop.checkpoint("scout")
    budget = split_budget(checkpoint)
    monkeypatch.setattr(tensorrt_engine, "available_memory", lambda: budget)
    with pytest.raises(EnvironmentLacks, match=r"compiling takes about 0\.5 GB .* --memory-budget cuts the decoder"):
        build(checkpoint, tmp_path / "e", rtx())
    assert list(tmp_path.iterdir()) == []
    build(checkpoint, tmp_path / "e", rtx(layers=(0, 1)))


# Available memory ----------------------------------------------------------------------------------------------------


def test_available_memory_is_the_machines_or_the_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       2000 kB\nMemFree:          10 kB\nMemAvailable:   1000 kB\n")
    monkeypatch.setattr(available_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(available_memory, "_CGROUP", tmp_path)
    assert available_memory.available_memory() == 1000 * 1024
    (tmp_path / "memory.current").write_text("400000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\nfile 100000\nfile_mapped 7\n")
    for limit, expected in (("max", 1000 * 1024), ("900000", 600000), ("90000000", 1000 * 1024)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert available_memory.available_memory() == expected
