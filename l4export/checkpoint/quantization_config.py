"""What a config.json says about quantisation, compared with the tensors.

Merging adapters and dequantising leave a `quantization_config` beside float weights (unsloth#1601, open-instruct#149),
and some programs write an empty one. So the tensors decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from l4export.checkpoint.hf_config import text_config
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.checkpoint.unreadable import is_quantised
from l4export.errors import InputError
from l4export.model.config_fields import show
from l4export.storage.safetensors import HANDLED_DTYPES

__all__ = ["check_weights_are_plain", "quantization_method"]

_ROUND = ("awq", "bitsandbytes", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq", "modelopt")
"""Methods that only round weights and compute the same with them. Beside float weights they mean nothing."""


def quantization_method(raw: Mapping[str, Any]) -> str | None:
    """The method that `quantization_config` names, for a message; None where there is none, or an empty one."""
    if not (given := _quantization_config(raw)):
        return None
    return show(given.get("quant_method", "of no method")) if isinstance(given, Mapping) else show(given)


def check_weights_are_plain(raw: Mapping[str, Any], tensors: Iterable[SourceTensor], where: Path) -> None:
    """Refuse a `quantization_config` (of the config.json `where`) that is true or may be true.

    Raises:
        InputError: a decoder layer has tensors of integers or FP8, or scales; or the method is one that computes
            something else with float weights too, such as a rotation of activations.
    """
    if not (method := quantization_method(raw)):
        return
    for tensor in tensors:
        in_layer = ".layers." in tensor.name and not tensor.name.startswith("vision_")
        if in_layer and (tensor.entry.dtype not in HANDLED_DTYPES or is_quantised(tensor.name)):
            raise InputError(
                f"{where}: quantization_config is {method}, and so are weights such as {tensor.name!r}, "
                f"{tensor.entry.dtype}; quantised checkpoints are not supported: use the float one"
            )
    given = _quantization_config(raw)
    if not isinstance(given, Mapping) or given.get("quant_method") not in _ROUND or given.get("transform_config"):
        raise InputError(
            f"{where}: quantization_config is {method}, though all weights are float; "
            "if they are the model's own, remove it from the file"
        )


def _quantization_config(raw: Mapping[str, Any]) -> object:
    return raw.get("quantization_config") or text_config(raw).get("quantization_config")
