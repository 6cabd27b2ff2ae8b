"""`--target compressed-tensors`, as one object."""

from __future__ import annotations

import json

from l4export.targets.checkpoint_target import CheckpointFiles, CheckpointRequest, CheckpointTarget

__all__ = ["COMPRESSED_TENSORS"]

_BLOCK_SIZES = (32, 64, 128)
"""What the loaders' kernels take."""


def _lay_out(request: CheckpointRequest) -> CheckpointFiles:
    """Decide what goes where; reads no weight."""
    from l4export.targets.compressed_tensors.quantization_config import with_quantization_config
    from l4export.targets.compressed_tensors.schemes import choose_schemes
    from l4export.targets.compressed_tensors.shards import lay_out_shards
    from l4export.targets.compressed_tensors.tensors import regions_of

    schemes = choose_schemes(request.config, request.policy, request.dtype, _BLOCK_SIZES)
    shards, headers, index = lay_out_shards(regions_of(request, schemes))
    config = with_quantization_config(
        request.raw_config, request.config, schemes, request.vision is not None, bool(request.prefix), request.dtype
    )
    texts = {"config.json": config, **index}
    return CheckpointFiles(shards, headers, {name: json.dumps(raw, indent=2) + "\n" for name, raw in texts.items()})


def _stays_float(name: str) -> bool:
    from l4export.targets.compressed_tensors.schemes import stays_float

    return stays_float(name)


COMPRESSED_TENSORS = CheckpointTarget(
    name="compressed-tensors",
    summary="a checkpoint for vLLM, SGLang and transformers",
    weight_kinds=("int8", "int4", "fp8"),
    block_sizes=_BLOCK_SIZES,
    lay_out=_lay_out,
    stays_float=_stays_float,
)
