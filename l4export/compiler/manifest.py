"""What an engine's manifest says, as its build was planned."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from l4export.calibration.activation_scales import METHOD as ACTIVATION_METHOD
from l4export.calibration.kv_scales import METHOD as KV_METHOD
from l4export.calibration.text import CalibrationText
from l4export.compiler.check_graph import check_calls, checked_layers, fused_operators, rounds_on_cpu
from l4export.compiler.compile import CompiledGraph
from l4export.compiler.inputs import BuildInputs
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import BuildPlan
from l4export.compiler.portable import packed_weights
from l4export.compiler.provenance import generator
from l4export.engine.check_record import CHECK_RECORD
from l4export.engine.kv_cache import KV_STORAGE, kv_capacities
from l4export.engine.manifest import (
    CHECK,
    CPU_KERNELS,
    DECODER,
    PACKED_WEIGHTS,
    PORTABLE,
    VISION,
    CheckGraph,
    EnginePart,
    Graph,
    InputSpec,
    KVLayer,
    Manifest,
    Runtime,
    TensorSpec,
)
from l4export.engine.vision_interface import TILES_PER_CALL
from l4export.graph.contents import layer_values
from l4export.graph.layer_excerpt import excerpt_layers
from l4export.model.config import ModelConfig
from l4export.quantization.cpu_operators import CPU_DOMAIN
from l4export.storage.file_records import FileRecord
from l4export.targets.kept_codes import StoredCodes
from l4export.targets.onnxruntime_versions import least_onnxruntime
from l4export.targets.tensorrt.parts import cut_decoder, part_names

__all__ = ["codes_options", "engine_manifest"]


def engine_manifest(planned: BuildPlan, files: dict[str, FileRecord], source: dict[str, FileRecord]) -> Manifest:
    """The manifest of an engine with these files, from these sources; without them, a draft to compare with."""
    config, options, packed = planned.config, planned.options, packed_weights(planned.graph.files)
    return Manifest(
        requires=(
            *((CPU_KERNELS,) if any(map(_has_own_operators, planned.graphs)) else ()),
            *((PACKED_WEIGHTS,) if packed else ()),
            *((VISION,) if planned.tower else ()),
        ),
        generator=generator(),
        target=options.target,
        model=config,
        precision={
            "weights": options.float_dtype,
            "compute": options.float_dtype,
            "kv_cache": options.cache_dtype,
            "activations": options.activations or options.float_dtype,
            "quant": _quant(options),
            **({VISION: options.tower_dtype} if planned.tower else {}),
        },
        max_context=planned.inputs.max_context,
        kv_layout=options.kv_layout,
        kv_storage=KV_STORAGE[options.cache_dtype],
        kv_layers=_kv_layers(config, options.kv_layout, planned.inputs.max_context),
        prefill_max_tokens=planned.prefill_tokens,
        prefill_cut=planned.prefill_cut,
        graphs={DECODER: _decoder(planned), **_tower(planned), **_portable(planned), **_check(planned)},
        passes=planned.passes,
        options={"weights": _weight_options(planned), "decoder": _decoder_options(planned)},
        source=source,
        files=files,
        packed_weights=packed,
        vision=planned.inputs.vision if planned.tower else None,
    )


def _has_own_operators(graph: CompiledGraph) -> bool:
    return any(node.domain == CPU_DOMAIN for node in graph.model.graph)


def _weight_options(planned: BuildPlan) -> dict[str, Any]:
    """The options that decide the bytes of weights."""
    options = planned.options
    return {
        "dtype": options.float_dtype,
        **({"layers": list(options.layers)} if options.layers else {}),
        **({VISION: options.tower_dtype} if planned.tower else {}),
        **codes_options(planned.inputs, options, planned.stored_codes),
    }


def codes_options(inputs: BuildInputs, options: BuildOptions, stored_codes: Sequence[StoredCodes]) -> dict[str, Any]:
    """Those that decide which numbers weights stand for, whatever they are written into."""
    policy, text, adapters = options.policy, inputs.texts.weights, inputs.checkpoint.adapters
    return {
        **({"adapters": [adapter.to_dict() for adapter in adapters]} if adapters else {}),
        **({"policy": policy.to_dict()} if policy else {}),
        **({"stored_codes": [codes.to_dict() for codes in stored_codes]} if stored_codes else {}),
        **({"auto": dict(policy.origin)} if policy and policy.origin else {}),
        **({"calibration": text.to_dict()} if text else {}),
    }


def _decoder_options(planned: BuildPlan) -> dict[str, Any]:
    """The options that change the graph and no weight."""
    options, texts = planned.options, planned.inputs.texts
    return {
        "kv_layout": options.kv_layout,
        "kv_dtype": options.cache_dtype,
        "max_context": planned.inputs.max_context,
        **({"activations": options.activations} if options.activations else {}),
        **_measured("activation_calibration", texts.activations, ACTIVATION_METHOD),
        **_measured("kv_calibration", texts.kv_cache, KV_METHOD),
        **({"compute_capabilities": list(options.compute_capabilities)} if options.compute_capabilities else {}),
    }


def _kv_layers(config: ModelConfig, layout: str, max_context: int) -> tuple[KVLayer, ...]:
    """Kind and capacity of each layer's cache; caches of `concat` grow without one."""
    capacities = kv_capacities(config, layout, max_context)
    return tuple(
        KVLayer("chunked" if chunked else "full", None if layout == "concat" else capacity)
        for chunked, capacity in zip(config.chunked_layers, capacities, strict=True)
    )


def _decoder(planned: BuildPlan) -> Graph:
    return Graph(
        file=f"{DECODER}.onnx",
        runtime=_runtime(planned.target.runtime, planned.model),
        inputs=_inputs(planned.model.graph),
        outputs=_outputs(planned.model.graph),
        profiles=tuple({"tokens": tokens} for tokens in planned.profiles) if planned.parts else (),
        parts=_parts(planned),
        needs=planned.target.needs,
    )


def _runtime(runtime: Runtime, model: ir.Model) -> Runtime:
    """With the least version that the graph needs of it; compiled engines have their own way to say so."""
    if runtime.name != "onnxruntime":
        return runtime
    return dataclasses.replace(runtime, min_version=least_onnxruntime(model, runtime.provider))


def _portable(planned: BuildPlan) -> dict[str, Graph]:
    """The decoder before it took a form that only its device executes; nothing where it has none."""
    if planned.graph.portable is planned.model:
        return {}
    model = planned.graph.portable
    runtime, graph = _runtime(Runtime("onnxruntime", "cpu"), model), model.graph
    return {PORTABLE: Graph(f"{PORTABLE}.onnx", runtime, _inputs(graph), _outputs(graph), profiles=(), parts=())}


def _check(planned: BuildPlan) -> dict[str, Graph]:
    """The graph by which a device is judged; nothing for targets that are not."""
    if not planned.target.is_judged:
        return {}
    layers = checked_layers(planned.model.graph, planned.config)
    model = excerpt_layers(planned.model, layers)
    graph = model.graph
    start, calls = check_calls(planned.inputs.max_context, planned.prefill_cut)
    check = CheckGraph(
        file=f"{CHECK}.onnx",
        runtime=_runtime(planned.target.runtime, model),
        inputs=_inputs(graph),
        outputs=_outputs(graph),
        profiles=(),
        parts=(),
        layers=layers,
        operators=fused_operators(graph),
        start=start,
        calls=calls,
        record=CHECK_RECORD,
        rounded=rounds_on_cpu(graph),
    )
    return {CHECK: check}


def _tower(planned: BuildPlan) -> dict[str, Graph]:
    """The vision tower, compiled as one engine where the decoder is compiled; nothing where none is built."""
    tower = planned.tower
    if tower is None:
        return {}
    inputs, outputs, file = _inputs(tower.model.graph), _outputs(tower.model.graph), f"{VISION}.onnx"
    layers = (0, 1 + max(held.layer for held in layer_values(tower.model.graph)))
    part = EnginePart(layers, file, f"{VISION}.engine", inputs, outputs)
    graph = Graph(
        file=file,
        runtime=_runtime(planned.target.runtime, tower.model),
        inputs=inputs,
        outputs=outputs,
        profiles=({"tiles": TILES_PER_CALL},) if planned.parts else (),
        parts=(part,) if planned.parts else (),
    )
    return {VISION: graph}


def _parts(planned: BuildPlan) -> tuple[EnginePart, ...]:
    if not planned.parts:
        return ()
    names, parts = part_names(planned.parts, DECODER), cut_decoder(planned.model, planned.parts)
    return tuple(
        EnginePart(layers, f"{name}.onnx", f"{name}.engine", _inputs(part.graph), _outputs(part.graph))
        for layers, name, part in zip(planned.parts, names, parts, strict=True)
    )


def _measured(name: str, text: CalibrationText | None, method: str) -> dict[str, Any]:
    """What scales were measured on, and how; nothing if none were."""
    return {name: {"text": text.name, **text.to_dict(), "method": method}} if text else {}


def _quant(options: BuildOptions) -> str:
    """The kinds of quantisation in use, such as "int4, int8", or "none"."""
    return ", ".join(sorted({rule.kind for rule in options.policy.rules})) if options.policy else "none"


def _inputs(graph: ir.Graph) -> tuple[InputSpec, ...]:
    """An input that is an initializer too has a default."""
    return tuple(InputSpec(*_interface(value), optional=value.name in graph.initializers) for value in graph.inputs)


def _outputs(graph: ir.Graph) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(*_interface(value)) for value in graph.outputs)


def _interface(value: ir.Value) -> tuple[str, str, tuple[int | str, ...]]:
    assert value.dtype is not None and value.shape is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return str(value.name), value.dtype.numpy().name, shape
