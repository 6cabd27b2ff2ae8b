"""What config.json tells the loaders: which modules have which scheme, and which are left alone.

Loaders match modules, by their class ("Linear") or by a regular expression for the beginning of their names ("re:..."):
first against `ignore`, then against the targets of each group. They call a layer's projections as the weights are
called, whatever they make of them; the name of the text model within a multimodal one is theirs, so patterns begin
with ".*". Fields and values are those that llm-compressor writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from l4export.checkpoint.hf_config import text_config
from l4export.checkpoint.strict_config import strict_fields
from l4export.model.config import ModelConfig
from l4export.quantization.schemes import Scheme
from l4export.targets.compressed_tensors.schemes import layers_of, linear_layers

__all__ = ["with_quantization_config"]

_VERSION = "0.20.0"
"""The version of the library compressed-tensors whose fields these are."""

_ALWAYS_IGNORED = ("re:.*lm_head", "re:.*router")
_TOWER = ("re:.*vision_model.*", "re:.*multi_modal_projector.*")


def with_quantization_config(
    raw: Mapping[str, Any],
    config: ModelConfig,
    schemes: Mapping[str, Scheme],
    has_tower: bool,
    nested: bool,
    dtype: str,
) -> dict[str, Any]:
    """The fields of a config.json, with what it says of quantisation replaced, and what transformers refuses.

    Args:
        raw: The fields as they were.
        config: The same as a configuration of the text model.
        schemes: The scheme of each weight that is quantised.
        has_tower: Whether there is a vision tower, which is left alone.
        nested: Whether the text model is a part of the model, by the names of its tensors.
        dtype: The model's, for loaders that would take float32 where nothing is said.
    """
    plain = _plain(raw, config, nested)
    if not plain.keys() & {"dtype", "torch_dtype"}:
        plain["torch_dtype"] = dtype  # the name that old versions of transformers know, and new ones too
    return {**plain, "quantization_config": _quantization_config(config, schemes, has_tower)}


def _plain(raw: Mapping[str, Any], config: ModelConfig, nested: bool) -> dict[str, Any]:
    """The fields of the model without quantisation, as loaders take them. A text model that is no part of another, but
    has another's config.json, gets its own."""
    text = text_config(raw)
    strict = _without(text, "quantization_config") | strict_fields(text, config)
    if text is raw:
        return strict
    whole = _without(raw, "quantization_config", "text_config")
    if nested:
        return whole | {"text_config": strict}
    own = {"model_type": "llama4_text", "architectures": ["Llama4ForCausalLM"]}
    return _without(whole, "vision_config") | strict | own


def _without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def _quantization_config(config: ModelConfig, schemes: Mapping[str, Scheme], has_tower: bool) -> dict[str, Any]:
    every = linear_layers(config)
    stored: dict[tuple[str, int], list[str]] = {}
    for name, scheme in schemes.items():
        stored.setdefault((scheme.kind, scheme.block_size), []).append(name)
    of_all = len(stored) == 1
    groups = {
        f"group_{number}": _group(kind, block, ["Linear"] if of_all else _patterns(names, every))
        for number, ((kind, block), names) in enumerate(sorted(stored.items()))
    }
    formats = {group["format"] for group in groups.values()}
    floats = [name for name in every if name not in schemes]
    return {
        "config_groups": groups,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "global_compression_ratio": None,
        "ignore": [*_ALWAYS_IGNORED, *(_TOWER if has_tower else ()), *_patterns(floats, every)],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": _VERSION,
    }


def _group(kind: str, block: int, targets: list[str]) -> dict[str, Any]:
    """W4A16 and W8A16 in groups, or FP8 with a scale a channel and activations rounded token by token."""
    if kind == "fp8":
        weights = _numbers(8, "float", "channel") | {"observer": "minmax"}
        activations = _numbers(8, "float", "token") | {"dynamic": True}
        return _filled("float-quantized", targets, weights, activations)
    weights = _numbers(4 if kind == "int4" else 8, "int", "group") | {"group_size": block, "observer": "minmax"}
    return _filled("pack-quantized", targets, weights, None)


def _filled(form: str, targets: list[str], weights: dict[str, Any], inputs: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "format": form,
        "input_activations": inputs,
        "output_activations": None,
        "targets": targets,
        "weights": weights,
    }


def _numbers(bits: int, kind: str, strategy: str) -> dict[str, Any]:
    return {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": None,
        "num_bits": bits,
        "observer": None,
        "observer_kwargs": {},
        "strategy": strategy,
        "symmetric": True,
        "type": kind,
    }


def _patterns(names: Iterable[str], every: Iterable[str]) -> list[str]:
    """Patterns of the modules of some weights of a model, which fit no module of its others."""
    everywhere, found = layers_of(every), dict[str, None]()
    for name, layers in layers_of(names).items():
        which = r"\d+" if layers == everywhere[name] else f"({'|'.join(map(str, sorted(layers)))})"
        module, _, expert = name.partition(".experts.")
        end = r"\.experts\..*" if expert else "$"  # the two weights of experts, which have one scheme, are one pattern
        found[rf"re:.*\blayers\.{which}\.{re.escape(module.removesuffix('.weight'))}{end}"] = None
    return list(found)
