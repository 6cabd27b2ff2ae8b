"""Whether the fields of a manifest agree with each other. Each refusal names the field that contradicts the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from l4export.engine.check_decoder import check_decoder
from l4export.engine.decoder_interface import DecoderInterface
from l4export.engine.kv_cache import KV_STORAGE, kv_capacities, prefill_cut
from l4export.engine.manifest_fields import refusal
from l4export.engine.manifest_types import CHECK, DECODER, PACKED_WEIGHTS, PORTABLE, UNPACKED, Manifest, Runtime
from l4export.engine.vision_interface import tower_contradictions
from l4export.engine.weight_layout import fits
from l4export.model.config_fields import show

__all__ = ["check_manifest"]

Contradiction = tuple[str, str]
"""A field, and what is wrong with it."""


def check_manifest(manifest: Manifest, where: str) -> None:
    """Refuse a manifest that contradicts itself. Each check relies on those before it, which found nothing.

    Raises:
        InputError: it does; the error names the file `where` and the first such field.
    """
    for check in _CHECKS:
        for path, problem in check(manifest):
            raise refusal(where, path, problem)


def _sequences(manifest: Manifest) -> Iterator[Contradiction]:
    """How long sequences are and how they are fed."""
    limit, cut = manifest.model.max_position_embeddings, prefill_cut(manifest.model, manifest.kv_layout)
    if manifest.max_context > limit:
        yield "max_context", f"is {manifest.max_context}, and the model takes {limit} tokens"
    if manifest.prefill_cut != cut:
        layout = f"layout {manifest.kv_layout} with attention_chunk_size {show(manifest.model.attention_chunk_size)}"
        yield "prefill.cut_at_multiples_of", f"is {show(manifest.prefill_cut)}; {layout} has {show(cut)}"
    if manifest.prefill_max_tokens > (most := min(manifest.max_context, cut or manifest.max_context)):
        yield "prefill.max_tokens_per_call", f"is {manifest.prefill_max_tokens}; a call can have {most}"


def _kv_cache(manifest: Manifest) -> Iterator[Contradiction]:
    """One cache for each layer, of its kind and size."""
    model, layout, layers = manifest.model, manifest.kv_layout, manifest.kv_layers
    if len(layers) != model.num_hidden_layers:
        yield "kv_cache.layers", f"has {len(layers)} entries; the model has {model.num_hidden_layers} layers"
    if manifest.kv_storage != KV_STORAGE[manifest.precision["kv_cache"]]:
        yield "kv_cache.storage", f"is not that of precision.kv_cache {manifest.precision['kv_cache']}"
    slots = kv_capacities(model, layout, manifest.max_context)
    for index, (layer, chunked, count) in enumerate(zip(layers, model.chunked_layers, slots, strict=True)):
        kind, capacity = "chunked" if chunked else "full", None if layout == "concat" else count
        if layer.kind != kind:
            yield f"kv_cache.layers[{index}].kind", f"is {layer.kind}; by model.chunked_layers it is {kind}"
        if layer.capacity != capacity:
            path = f"kv_cache.layers[{index}].capacity"
            yield path, f"is {show(layer.capacity)}; in layout {layout} it is {show(capacity)}"


def _precision(manifest: Manifest) -> Iterator[Contradiction]:
    """Dtypes, and what is quantised, by which parity judges."""
    compute, activations = manifest.precision["compute"], manifest.precision["activations"]
    if activations not in {compute, "fp8"}:
        yield "precision.activations", f"is {activations}; expected precision.compute ({compute}) or fp8"
    policy = manifest.options["weights"].get("policy", {"rules": [], "accuracy_level": 0})
    if not _is_policy(policy):
        yield "options.weights.policy", "does not have rules and accuracy_level"
    kinds = ", ".join(sorted({rule["kind"] for rule in policy["rules"]})) or "none"
    if manifest.precision["quant"] != kinds:
        yield (
            "precision.quant",
            f"is {show(manifest.precision['quant'])}; by options.weights it is {show(kinds)}",
        )


def _is_policy(policy: Any) -> bool:
    return (
        isinstance(policy, dict)
        and type(level := policy.get("accuracy_level")) is int
        and 0 <= level <= 4  # the levels that ONNX Runtime's operators know
        and isinstance(policy.get("rules"), list)
        and all(map(_is_rule, policy["rules"]))
    )


def _is_rule(rule: Any) -> bool:
    return (
        isinstance(rule, dict)
        and isinstance(rule.get("kind"), str)
        and type(rule.get("as_stored", False)) is bool
        and all(isinstance(rule.get(field), list) for field in ("weights", "but"))
        and all(isinstance(name, str) for name in (*rule["weights"], *rule["but"]))
    )


def _graphs(manifest: Manifest) -> Iterator[Contradiction]:
    """What holds of every graph, whatever it computes."""
    if DECODER not in manifest.graphs:
        yield f"graphs.{DECODER}", "is missing"
    for name, graph in manifest.graphs.items():
        path = f"graphs.{name}"
        named = {f"{path}.file": graph.file}
        for index, part in enumerate(graph.parts):
            named |= {f"{path}.parts[{index}].graph": part.graph, f"{path}.parts[{index}].engine": part.engine}
        for field, file in named.items():
            if file not in manifest.files:
                yield field, f"is {show(file)}, which is not among the files"
        if bool(graph.parts) != bool(graph.profiles):
            yield f"{path}.profiles", "do not go with its parts: compiled engines have both, other graphs neither"
        if graph.runtime.name == "tensorrt" and not graph.parts:
            yield f"{path}.parts", "lists no compiled engine, and its runtime is tensorrt"
        if graph.runtime.name == "onnxruntime" and graph.parts:
            yield f"{path}.parts", "lists compiled engines, and its runtime is onnxruntime"


def _decoder(manifest: Manifest) -> Iterator[Contradiction]:
    """Inputs and outputs, and profiles for calls of every size."""
    decoder, path = manifest.decoder, f"graphs.{DECODER}"
    interface = DecoderInterface(manifest, (0, manifest.model.num_hidden_layers))
    yield from interface.contradictions(decoder.inputs, decoder.outputs, path)
    for index, profile in enumerate(decoder.profiles):
        if "tokens" not in profile:
            yield f"{path}.profiles[{index}].tokens", "is missing"
    reached, most = 0, manifest.prefill_max_tokens
    for least, _, largest in sorted(profile["tokens"] for profile in decoder.profiles):
        reached = max(reached, largest) if least <= reached + 1 else reached
    if decoder.profiles and reached < most:
        yield f"{path}.profiles", f"take no call of {reached + 1} tokens; prefill.max_tokens_per_call is {most}"


def _parts(manifest: Manifest) -> Iterator[Contradiction]:
    """Parts hold every layer, in order, and each takes what those before it give; a compiled engine has no defaults."""
    path, parts, layers = f"graphs.{DECODER}.parts", manifest.decoder.parts, manifest.model.num_hidden_layers
    starts, stops = ([part.layers[end] for part in parts] for end in (0, 1))
    in_order = all(start < stop for start, stop in zip(starts, stops, strict=True))
    if parts and not (in_order and [*starts, layers] == [0, *stops]):
        yield path, f"do not hold each of the layers 0 to {layers - 1} once, in order"
    for index, part in enumerate(parts):
        interface = DecoderInterface(manifest, part.layers)
        yield from interface.contradictions(part.inputs, part.outputs, f"{path}[{index}]")
        for number, tensor in enumerate(part.inputs):
            if tensor.optional:
                yield f"{path}[{index}].inputs[{number}].optional", f"is true; a compiled engine needs {tensor.name}"


def _portable(manifest: Manifest) -> Iterator[Contradiction]:
    """It stands for the decoder on a CPU, call by call."""
    decoder, portable, path = manifest.decoder, manifest.portable, f"graphs.{PORTABLE}"
    if portable is decoder:
        return
    if portable.runtime != Runtime("onnxruntime", "cpu"):
        yield f"{path}.runtime", f"is {portable.runtime}; a portable graph is for onnxruntime cpu"
    for field in ("inputs", "outputs"):
        if getattr(portable, field) != getattr(decoder, field):
            yield f"{path}.{field}", f"are not those of graphs.{DECODER}"


def _packed_weights(manifest: Manifest) -> Iterator[Contradiction]:
    """Each lies within a file, in an order that its shape has, and a CPU has a graph without it."""
    packed = manifest.packed_weights
    if PACKED_WEIGHTS in manifest.requires and not packed:
        yield PACKED_WEIGHTS, "is empty, and the engine requires it"
    if packed and PORTABLE not in manifest.graphs:
        yield f"graphs.{PORTABLE}", "is missing, and weights are packed"
    if packed and UNPACKED in manifest.files:
        yield f"files.{UNPACKED}", "is there; it stands for weights that lie packed in other files"
    for name, count in Counter(weight.name for weight in packed).items():
        if count > 1:
            yield PACKED_WEIGHTS, f"has {count} weights called {show(name)}"
    for index, weight in enumerate(packed):
        path = f"{PACKED_WEIGHTS}[{index}]"
        if len(weight.shape) != 3 or not fits(weight.shape[1], weight.shape[2] * 8 // weight.bits, weight.bits):
            shape = " x ".join(map(str, weight.shape))
            yield f"{path}.shape", f"is {shape}, which {weight.layout} of {weight.bits} bits has not"
        if weight.file not in manifest.files:
            yield f"{path}.file", f"is {show(weight.file)}, which is not among the files"
        elif weight.offset + math.prod(weight.shape) > manifest.files[weight.file].bytes:
            yield f"{path}.offset", f"is {weight.offset}, and the weight goes beyond the end of {weight.file}"


def _check(manifest: Manifest) -> Iterator[Contradiction]:
    """A decoder of some layers for the same runtime, and calls that its context has room for."""
    check, path = manifest.check, f"graphs.{CHECK}"
    if check is None:
        return
    count = manifest.model.num_hidden_layers
    if not check.layers or list(check.layers) != sorted({*check.layers} & {*range(count)}):
        yield f"{path}.layers", f"are not some of the layers 0 to {count - 1}, in order"
    if not check.calls or check.start + sum(check.calls) > manifest.max_context:
        yield f"{path}.calls", f"do not lie between position {check.start} and max_context, {manifest.max_context}"
    if check.record not in manifest.files:
        yield f"{path}.record", f"is {show(check.record)}, which is not among the files"
    if check.runtime != manifest.decoder.runtime:
        yield f"{path}.runtime", f"is {check.runtime}, and the decoder's is {manifest.decoder.runtime}"
    interface = DecoderInterface(check_decoder(manifest, check), (0, len(check.layers)))
    yield from interface.contradictions(check.inputs, check.outputs, path)


_CHECKS = (
    *(_sequences, _kv_cache, _precision, _graphs, tower_contradictions, _decoder, _parts),
    *(_portable, _packed_weights, _check),
)
