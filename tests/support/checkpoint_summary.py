"""What a Hugging Face directory has, short enough to be kept: names, shapes and dtypes of its tensors, and its config.

It is read without any library, so that the program that wrote a directory has no say in what is found there.
"""

from __future__ import annotations

import itertools
import json
import re
import struct
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def summary(path: Path, source: Path) -> dict[str, Any]:
    """Of the directory `path`: its tensors; `quantization_config`; and in what else its config.json departs from that
    of `source`, the checkpoint that it was made from."""
    config, before = _config(path), _config(source)
    quantization = config.pop("quantization_config")
    quantization["ignore"] = sorted(collapse(dict.fromkeys(quantization["ignore"])))
    return {
        "tensors": {name: list(kind) for name, kind in collapse(_tensors(path)).items()},
        "quantization_config": quantization,
        "changed": {name: value for name, value in config.items() if before.get(name, ...) != value},
        "removed": sorted(before.keys() - config.keys()),
    }


def collapse(names: Mapping[str, Any]) -> dict[str, Any]:
    """Names that differ in numbers alone, and have equal values, as one: `layers.{0,1}.experts.{0,1}.down_proj`.

    Every combination of the numbers is there; where that is not so, names stay apart.
    """
    groups: dict[tuple[str, Any], list[tuple[int, ...]]] = defaultdict(list)
    for name, value in names.items():
        numbers = tuple(map(int, re.findall(r"(?<=\.)\d+(?=\.)", name)))
        groups[re.sub(r"(?<=\.)\d+(?=\.)", "{}", name), value].append(numbers)
    found: dict[str, Any] = {}
    for (form, value), numbers in groups.items():
        axes = [sorted(set(axis)) for axis in zip(*numbers, strict=True)]
        if sorted(numbers) == list(itertools.product(*axes)):
            found[form.format(*("{" + ",".join(map(str, axis)) + "}" for axis in axes))] = value
        else:
            found |= {form.format(*each): value for each in numbers}
    return dict(sorted(found.items()))


def _config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    return config


def _tensors(path: Path) -> dict[str, tuple[Any, ...]]:
    """(dtype, sizes...) of every tensor, as the safetensors headers have them."""
    found: dict[str, tuple[Any, ...]] = {}
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as handle:
            (size,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(size))
        header.pop("__metadata__", None)
        found |= {name: (entry["dtype"], *entry["shape"]) for name, entry in header.items()}
    return found
