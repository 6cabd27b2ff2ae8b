"""What an engine's manifest says, as its build was planned."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from l4export.calibration.activation_scales import METHOD as ACTIVATION_METHOD
from l4export.calibration.kv_scales import METHOD as KV_METHOD
from l4export.calibration.text import CalibrationText
from l4export.compiler.plan import STEM, BuildOptions, BuildPlan
from l4export.compiler.provenance import generator
from l4export.engine.kv_cache import kv_capacities
from l4export.engine.manifest import EnginePart, KVLayer, Manifest
from l4export.model.config import ModelConfig
from l4export.storage.file_records import FileRecord
from l4export.targets.tensorrt.parts import decoder_parts

__all__ = ["PREFILL_TOKENS", "engine_manifest", "prefill_tokens"]

PREFILL_TOKENS = 512
"""Tokens that a runtime feeds in one call at most."""


def prefill_tokens(planned: BuildPlan) -> int:
    """The most tokens that a runtime feeds in one call."""
    return min(PREFILL_TOKENS, planned.max_context, _prefill_cut(planned) or PREFILL_TOKENS)


def _prefill_cut(planned: BuildPlan) -> int | None:
    return planned.config.attention_chunk_size if planned.options.kv_layout == "chunked" else None


def _kv_layers(config: ModelConfig, layout: str, max_context: int) -> tuple[KVLayer, ...]:
    """Kind and capacity of each layer's cache; caches of `concat` grow without one."""
    capacities = kv_capacities(config, layout, max_context)
    return tuple(
        KVLayer("chunked" if chunked else "full", None if layout == "concat" else capacity)
        for chunked, capacity in zip(config.chunked_layers, capacities, strict=True)
    )


def engine_manifest(planned: BuildPlan, files: dict[str, FileRecord], source: dict[str, FileRecord]) -> Manifest:
    """The manifest of an engine with these files, from these sources; without them, a draft to compare with."""
    config, options = planned.config, planned.options
    graph = planned.model.graph
    return Manifest(
        generator=generator(),
        target=options.target,
        model=config,
        precision={
            "weights": options.dtype,
            "compute": options.dtype,
            "kv_cache": options.cache_dtype,
            "activations": options.activations or options.dtype,
            "quant": _quant(options),
        },
        max_context=planned.max_context,
        kv_layout=options.kv_layout,
        kv_layers=_kv_layers(config, options.kv_layout, planned.max_context),
        prefill_max_tokens=prefill_tokens(planned),
        prefill_cut=_prefill_cut(planned),
        inputs=tuple(_interface(value) for value in graph.inputs),
        outputs=tuple(_interface(value) for value in graph.outputs),
        parts=_parts(planned),
        passes=planned.passes,
        options={
            "dtype": options.dtype,
            "kv_layout": options.kv_layout,
            "kv_dtype": options.cache_dtype,
            "max_context": planned.max_context,
            **({"layers": list(options.layers)} if options.layers else {}),
            **({"policy": options.policy.to_dict()} if options.policy else {}),
            **({"auto": dict(options.auto)} if options.auto else {}),
            **({"calibration": planned.calibration.text.to_dict()} if planned.calibration else {}),
            **({"activations": options.activations} if options.activations else {}),
            **_measured("activation_calibration", planned.activation_calibration, ACTIVATION_METHOD),
            **_measured("kv_calibration", planned.kv_calibration, KV_METHOD),
            **({"compute_capability": list(capabilities)} if (capabilities := options.compute_capabilities) else {}),
        },
        source=source,
        files=files,
    )


def _parts(planned: BuildPlan) -> tuple[EnginePart, ...]:
    named = decoder_parts(planned.model, planned.parts, STEM)
    return tuple(
        EnginePart(
            *(layers, f"{name}.onnx", f"{name}.engine"),
            tuple(map(_interface, part.graph.inputs)),
            tuple(map(_interface, part.graph.outputs)),
        )
        for layers, (name, part) in zip(planned.parts, named, strict=True)
    )


def _measured(name: str, text: CalibrationText | None, method: str) -> dict[str, Any]:
    """What scales were measured on, and how; nothing if none were."""
    return {name: {"text": text.name, **text.to_dict(), "method": method}} if text else {}


def _quant(options: BuildOptions) -> str:
    """The kinds of quantisation in use, such as "int4, int8", or "none"."""
    return ", ".join(sorted({rule.kind for rule in options.policy.rules})) if options.policy else "none"


def _interface(value: ir.Value) -> dict[str, Any]:
    assert value.dtype is not None and value.shape is not None
    shape = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
    return {"name": str(value.name), "dtype": value.dtype.numpy().name, "shape": shape}
