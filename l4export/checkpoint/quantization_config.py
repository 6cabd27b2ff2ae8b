"""What a config.json says about quantisation, compared with the tensors.

Merging adapters and dequantising leave a `quantization_config` beside float weights (unsloth#1601, open-instruct#149),
and some programs write an empty one. So the tensors decide whether weights are quantised, and the config says how.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l4export.checkpoint.hf_config import text_config
from l4export.checkpoint.quantization_scheme import CODES, FP8_CHANNELS, Scheme, read_schemes
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.checkpoint.unreadable import is_quantised, way_out
from l4export.errors import InputError
from l4export.model.config_fields import show
from l4export.storage.safetensors import HANDLED_DTYPES

__all__ = ["Quantization", "quantization_method", "read_quantization"]

_ROUND = ("awq", "bitsandbytes", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq", "modelopt")
"""Methods that only round weights and compute the same with them. Beside float weights they mean nothing."""


@dataclass(frozen=True)
class Quantization:
    """How weights of a checkpoint are quantised.

    Attributes:
        method: Who did it, as config.json names it.
        schemes: In which ways.
        ignored: What else the config asks for, and what reading weights alone leaves out, for people.
    """

    method: str
    schemes: tuple[Scheme, ...]
    ignored: tuple[str, ...]

    def note(self, tensors: Collection[SourceTensor]) -> str:
        """A line that says what is made of a checkpoint's tensors."""
        count = sum(map(_is_codes, tensors))
        ignored = f"; that it asks for {' and '.join(self.ignored)} is ignored" if self.ignored else ""
        return f"{count} tensors of weights are quantised ({self.method}: {'; '.join(map(str, self.schemes))}){ignored}"


def quantization_method(raw: Mapping[str, Any]) -> str | None:
    """The method that `quantization_config` names, for a message; None where there is none, or an empty one."""
    if not (given := _quantization_config(raw)):
        return None
    return show(given.get("quant_method", "of no method")) if isinstance(given, Mapping) else show(given)


def read_quantization(raw: Mapping[str, Any], tensors: Mapping[str, SourceTensor], where: Path) -> Quantization | None:
    """How weights are quantised, by the config.json `where`; None: nothing there is codes or scales.

    Raises:
        InputError: a method that is not read, by name, or a `quantization_config` that is malformed; or it is beside
            float weights and its method is one that computes something else with them, such as a rotation.
    """
    method, given = quantization_method(raw), _quantization_config(raw)
    quantised = next((tensor for tensor in tensors.values() if _is_part(tensor)), None)
    if quantised is None:
        if method and (not isinstance(given, Mapping) or given.get("quant_method") not in _ROUND or _rotates(given)):
            raise InputError(
                f"{where}: quantization_config is {method}, though all weights are float; "
                "if they are the model's own, remove it from the file"
            )
        return None
    if problem := way_out(tensors, where.parent, given):
        raise InputError(f"{where.parent}: {problem}")
    if method is None:
        return None  # whoever looks for the weight says so
    if not isinstance(given, Mapping) or given.get("quant_method") not in ("compressed-tensors", "fbgemm_fp8"):
        raise InputError(
            f"{where}: quantization_config is {method}, and so are weights such as {quantised.name!r}, "
            f"{quantised.entry.dtype}; read are compressed-tensors and fbgemm_fp8: use one of them, or the float "
            "checkpoint"
        )
    if given["quant_method"] == "fbgemm_fp8":
        return Quantization(method, (FP8_CHANNELS,), ("FP8 activations",))
    if _rotates(given):
        raise InputError(
            f"{where}: quantization_config rotates or prunes ({', '.join(_rotates(given))}), which is not read; use "
            "the float checkpoint"
        )
    return Quantization(method, read_schemes(given, str(where)), tuple(_ignored(given)))


def _is_part(tensor: SourceTensor) -> bool:
    """Whether a tensor belongs to a quantised weight: has codes, or whatever else is no weight in a decoder layer."""
    in_layer = ".layers." in tensor.name and not tensor.name.startswith("vision_")
    other = in_layer and (tensor.entry.dtype not in HANDLED_DTYPES or is_quantised(tensor.name))
    return other or _is_codes(tensor)


def _is_codes(tensor: SourceTensor) -> bool:
    """Whether a tensor has the codes of a weight."""
    in_place = tensor.entry.dtype in CODES and not tensor.name.endswith("_zero_point")
    return in_place or tensor.name.endswith(".weight_packed")


def _rotates(given: Mapping[str, Any]) -> list[str]:
    """The fields by which a model computes something else than with its dequantised weights."""
    sparse = given.get("sparsity_config")
    is_dense = not sparse or (isinstance(sparse, Mapping) and sparse.get("format") in (None, "dense"))
    return [
        name
        for name, used in (("transform_config", given.get("transform_config")), ("sparsity_config", not is_dense))
        if used
    ]


def _ignored(given: Mapping[str, Any]) -> list[str]:
    """What a config of compressed-tensors asks for beside weights."""
    groups = given.get("config_groups")
    schemes = [group for group in groups.values() if isinstance(group, Mapping)] if isinstance(groups, Mapping) else []
    rounded = any(group.get(name) for group in schemes for name in ("input_activations", "output_activations"))
    return ["quantised activations"] * rounded + ["a quantised KV cache"] * bool(given.get("kv_cache_scheme"))


def _quantization_config(raw: Mapping[str, Any]) -> object:
    return raw.get("quantization_config") or text_config(raw).get("quantization_config")
