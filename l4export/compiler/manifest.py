"""What an engine's manifest says, as its build was planned."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from l4export.calibration.activation_scales import METHOD as ACTIVATION_METHOD
from l4export.calibration.kv_scales import METHOD as KV_METHOD
from l4export.calibration.text import CalibrationText
from l4export.compiler.plan import BuildOptions, BuildPlan
from l4export.compiler.provenance import generator
from l4export.engine.kv_cache import KV_STORAGE, kv_capacities, prefill_cut
from l4export.engine.manifest import DECODER, EnginePart, Graph, InputSpec, KVLayer, Manifest, Runtime, TensorSpec
from l4export.engine.profiles import TokenRange, token_profiles
from l4export.model.config import ModelConfig
from l4export.storage.file_records import FileRecord
from l4export.targets.tensorrt.parts import decoder_parts

__all__ = ["PREFILL_TOKENS", "decoder_profiles", "engine_manifest", "prefill_tokens"]

PREFILL_TOKENS = 512
"""Tokens that a runtime feeds in one call at most."""

RUNTIMES = {
    "ort-cpu": Runtime("onnxruntime", "cpu"),
    "ort-cuda": Runtime("onnxruntime", "cuda"),
    "onnx": Runtime("onnxruntime", "cpu"),
    "tensorrt-rtx": Runtime("tensorrt", "tensorrt-rtx"),
    "tensorrt": Runtime("tensorrt", "tensorrt"),
}
"""What runs the engines of each target."""


def prefill_tokens(planned: BuildPlan) -> int:
    """The most tokens that a runtime feeds in one call."""
    cut = prefill_cut(planned.config, planned.options.kv_layout)
    return min(PREFILL_TOKENS, planned.max_context, cut or PREFILL_TOKENS)


def decoder_profiles(planned: BuildPlan) -> list[TokenRange]:
    """Optimisation profiles that the decoder's engines are compiled with."""
    return token_profiles(planned.options.policy is not None, planned.options.kv_layout, prefill_tokens(planned))


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
    return Manifest(
        requires=(),
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
        kv_storage=KV_STORAGE[options.cache_dtype],
        kv_layers=_kv_layers(config, options.kv_layout, planned.max_context),
        prefill_max_tokens=prefill_tokens(planned),
        prefill_cut=prefill_cut(config, options.kv_layout),
        graphs={DECODER: _decoder(planned)},
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


def _decoder(planned: BuildPlan) -> Graph:
    return Graph(
        file=f"{DECODER}.onnx",
        runtime=RUNTIMES[planned.options.target],
        inputs=_inputs(planned.model.graph),
        outputs=_outputs(planned.model.graph),
        profiles=tuple({"tokens": tokens} for tokens in decoder_profiles(planned)) if planned.parts else (),
        parts=tuple(
            EnginePart(layers, f"{name}.onnx", f"{name}.engine", _inputs(part.graph), _outputs(part.graph))
            for layers, (name, part) in zip(
                planned.parts, decoder_parts(planned.model, planned.parts, DECODER), strict=True
            )
        ),
    )


def _measured(name: str, text: CalibrationText | None, method: str) -> dict[str, Any]:
    """What scales were measured on, and how; nothing if none were."""
    return {name: {"text": text.name, **text.to_dict(), "method": method}} if text else {}


def _quant(options: BuildOptions) -> str:
    """The kinds of quantisation in use, such as "int4, int8", or "none"."""
    kinds = {rule.kind for rule in options.policy.rules} if options.policy else set()
    return ", ".join(sorted(kinds)) or "none"


def _inputs(graph: ir.Graph) -> tuple[InputSpec, ...]:
    """An input that is an initializer too has a default."""
    return tuple(InputSpec(*_interface(value), optional=value.name in graph.initializers) for value in graph.inputs)


def _outputs(graph: ir.Graph) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(*_interface(value)) for value in graph.outputs)


def _interface(value: ir.Value) -> tuple[str, str, tuple[int | str, ...]]:
    assert value.dtype is not None and value.shape is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return str(value.name), value.dtype.numpy().name, shape
