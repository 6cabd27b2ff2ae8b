"""Safetensors files of about 5 GB and their index, planned before a byte of a weight is known.

A file's header is decided by names, dtypes and shapes alone, so its length is known, and weights are written behind it,
in any order. Tensors follow one another without gaps, those with the widest elements first, so that all are aligned;
that is the order of the library safetensors too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir

from l4export.storage.safetensors import DTYPE_BITS
from l4export.storage.safetensors_writer import safetensors_header
from l4export.targets.compressed_tensors.tensors import Region
from l4export.weights.placement import DataFile, Placement

__all__ = ["INDEX", "lay_out_shards"]

INDEX = "model.safetensors.index.json"

_SHARD_BYTES = 5 * 10**9
"""A file is closed before it grows beyond this; a larger weight, such as 128 experts in FP8, has one of its own."""


def lay_out_shards(
    weights: Sequence[Sequence[Region]],
) -> tuple[tuple[DataFile, ...], dict[str, bytes], dict[str, dict[str, Any]]]:
    """The files, the header of each by its name, and the index by its name; a single file has no index.

    What a weight consists of stays together.
    """
    cut = list(_cut(weights))
    files, headers, places = [], dict[str, bytes](), dict[str, str]()
    for number, held in enumerate(cut, start=1):
        name = "model.safetensors" if len(cut) == 1 else f"model-{number:05d}-of-{len(cut):05d}.safetensors"
        ordered = sorted(held, key=lambda region: -DTYPE_BITS[region.dtype])
        headers[name], _ = safetensors_header(
            (tensor, region.dtype, region.shape) for region in ordered for tensor in region.names
        )
        files.append(_placed(name, ordered, len(headers[name])))
        places |= {tensor: name for region in held for tensor in region.names}
    total = sum(_nbytes(regions) for regions in weights)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    return tuple(files), headers, {INDEX: index} if len(cut) > 1 else {}


def _cut(weights: Sequence[Sequence[Region]]) -> Iterator[list[Region]]:
    held: list[Region] = []
    for regions in weights:
        if held and _nbytes([*held, *regions]) > _SHARD_BYTES:
            yield held
            held = []
        held += regions
    yield held


def _nbytes(regions: Sequence[Region]) -> int:
    return sum(region.recipe.nbytes for region in regions)


def _placed(name: str, regions: Sequence[Region], start: int) -> DataFile:
    placements, offset = [], start
    for region in regions:
        placements.append(Placement((ir.Value(name=region.names[0]),), region.recipe, offset))
        offset += region.recipe.nbytes
    return DataFile(name, tuple(placements), offset)
