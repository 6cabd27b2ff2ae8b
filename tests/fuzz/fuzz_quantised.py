"""Class `quantised`: checkpoints of compressed-tensors and fbgemm_fp8, whose codes and sidecars do not fit; built."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fuzz_case import Case, Subject
from fuzz_checkpoint import use_checkpoint
from fuzz_files import (
    WIDTHS,
    Files,
    Pieces,
    change_tensor,
    mutate_safetensors,
    pack_pieces,
    pieces_of,
    read_files,
    write_changed,
)
from fuzz_json import dumps, mutate_json
from fuzz_quantised_definition import check_weights
from fuzz_valid import small_checkpoint

__all__ = ["QuantisedSubject"]

_WEIGHTS = "model.safetensors"
_CODES = ("weight_packed", "_proj.weight", "experts.gate_up_proj", "experts.down_proj")
_NAMES = ["weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape"]
_FOREIGN = ["weight_scale_inv", "weight_global_scale", "scales", "qweight", "SCB", "weight.absmax", "input_scale"]
_WORDS = [
    *("compressed-tensors", "fbgemm_fp8", "fp8", "bitsandbytes", "gptq", "modelopt", "pack-quantized", "dense"),
    *("int", "float", "tensor", "channel", "group", "block", "token", "weight", "static", "dynamic"),
    *(4, 8, 16, 32, 64, -1, 24, [24, 40], "24x40", [64, 64], [0, 1], True, False, None, {"format": "sparse-bitmask"}),
]
_OPTIONS: list[dict[str, Any]] = [{}, {}, {"layers": (0, 1)}, {"kv_layout": "chunked"}, {"quant": "int8"}]


class QuantisedSubject(Subject):
    """Checkpoints in several schemes; whatever is built must run, on weights that are those of the definition."""

    name = "quantised"

    def prepare(self) -> None:
        """One checkpoint of each scheme."""
        from quantised_checkpoints import Linears, quantised, quantised_by_fbgemm

        forms = {
            "scout w4a16": Linears(packed=True, bits=4, strategy="group"),
            "maverick fp8": Linears(is_float=True),
            "maverick reordered": Linears(packed=True, bits=4, strategy="group", symmetric=False, reordered=True),
            "scout rows": Linears(packed=True, bits=4, symmetric=False, scale_dtype=np.float16),
            "guard int8": Linears(symmetric=False, scale_dtype=np.float32),
            "scout blocks": Linears(is_float=True, strategy="block"),
            "guard int4 in int8": Linears(bits=4, strategy="group", symmetric=False),
            "maverick tensors": Linears(symmetric=False, strategy="tensor"),
        }
        for variant in ("scout", "maverick", "guard"):
            small_checkpoint(self.valid / f"float-{variant}", variant)
        for name, form in forms.items():
            quantised(self.valid / f"float-{name.split()[0]}", self.valid / name, form)
        quantised_by_fbgemm(self.valid / "float-maverick", self.valid / "maverick fbgemm")

    def begin(self) -> None:
        """Build one with quantised weights, which loads the kernels, and run it."""
        names = sorted(path.name for path in self.valid.iterdir() if "float" not in path.name)
        self.files = {name: read_files(self.valid / name) for name in names}
        use_checkpoint(self.valid / names[0], self.valid / f"engine-float-{os.getpid()}", _OPTIONS[-1])

    def make(self, rng: random.Random, place: Path) -> Case:
        """Other numbers in one to three tensors, or as many other changes; and options to build it with."""
        name, options = rng.choice(list(self.files)), rng.choice(_OPTIONS)
        numbers_alone = rng.random() < 0.4
        change = _other_numbers if numbers_alone else _change
        path = place / "checkpoint"
        what = [name, str(options), *write_changed(path, self.files[name], change, rng, whole=not numbers_alone)]
        layers = options.get("layers", (0, 2))

        def run() -> None:
            use_checkpoint(path, place / "engine", options)
            check_weights(path, layers, numbers_alone)

        return Case(run, what, output="engine")


def _is_sidecar(name: str) -> bool:
    return name.rpartition(".")[2] in _NAMES[2:] or name.endswith("_proj_scale")


def _chosen(pieces: Pieces, rng: random.Random) -> str:
    """Mostly a sidecar, sometimes codes, seldom anything."""
    sidecars = [name for name in pieces if _is_sidecar(name)]
    codes = [name for name in pieces if name.endswith(_CODES)]
    return rng.choice(rng.choice([sidecars or list(pieces)] * 6 + [codes or list(pieces)] * 2 + [list(pieces)]))


def _other_numbers(files: Files, rng: random.Random) -> str:
    """Numbers of a tensor that no rounding has made, or that may well be."""
    pieces = pieces_of(files[_WEIGHTS])
    name = _chosen(pieces, rng)
    entry, data = pieces[name]
    changed, told = _numbers(name.rpartition(".")[2], entry, data, rng)
    pieces[name] = (entry, changed)
    files[_WEIGHTS] = pack_pieces(pieces)
    return f"{name}: {told}"


def _numbers(last: str, entry: Mapping[str, Any], data: bytes, rng: random.Random) -> tuple[bytes, str]:
    width = WIDTHS.get(entry["dtype"], 1)
    values = np.frombuffer(bytearray(data), f"u{width}")
    if last == "weight_g_idx":
        return _order(np.frombuffer(bytearray(data), f"i{width}"), rng)
    if last == "weight_shape":
        shape = np.frombuffer(bytearray(data), f"i{width}")
        shape[rng.randrange(len(shape))] = told = rng.choice([0, -1, 1, 32, 64, 96, 63, 2**31 - 1, -(2**31)])
        return shape.tobytes(), f"{told} for a size"
    if entry["dtype"] in ("F32", "F16", "BF16"):
        hostile = {
            "F32": [0x7FC00000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 1],
            "F16": [0x7E00, 0x7C00, 0xFC00, 0x7BFF, 1],
        }
        bits = hostile.get(entry["dtype"], [0x7FC0, 0x7F80, 0xFF80, 0x7F7F, 1])
        sign = 1 << (8 * width - 1)
        pattern = rng.choice([*bits, 0, sign, 0x3F800000 >> 8 * (4 - width), sign | 0x3C00 << 8 * (width - 2)])
    else:
        pattern = rng.choice([0, 1, 0x7F, 0x80, 0xFF, 0x77777777, 0x88888888, (1 << 8 * width) - 1]) % (1 << 8 * width)
    if rng.random() < 0.2:
        return rng.randbytes(len(data)), "random bytes"
    step = rng.choice([1, 7, max(1, len(values))])
    values[rng.randrange(min(step, max(1, len(values)))) :: step] = pattern
    return values.tobytes(), f"{pattern:#x} every {step}"


def _order(groups: np.ndarray, rng: random.Random) -> tuple[bytes, str]:
    """The groups of columns: another order of theirs, which is right, or one that none can be."""
    way = rng.choice(["shuffled", "sorted", "reversed", "all of none", "one of none", "one more", "far", "all one"])
    at = rng.randrange(len(groups))
    if way == "shuffled":
        groups[:] = rng.sample(list(groups), len(groups))
    elif way in ("sorted", "reversed"):
        groups[:] = sorted(groups, reverse=way == "reversed")
    elif way == "all one":
        groups[:] = groups[at]
    elif way == "all of none":
        groups[:] = -1
    else:
        groups[at] = {"one of none": -1, "one more": groups[at] + 1, "far": 2**31 - 1}[way]
    return groups.tobytes(), way


def _change(files: Files, rng: random.Random) -> str:
    """Change one of the files; says how. What an earlier change has made unreadable stays as it is."""
    way = rng.randrange(10)
    try:
        if way < 3:
            return _other_config(files, rng)
        if way == 3:
            files[_WEIGHTS], told = mutate_safetensors(files[_WEIGHTS], rng)
            return told
        return _other_tensors(files, rng) if way < 8 else _other_numbers(files, rng)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return "as it was"


def _other_config(files: Files, rng: random.Random) -> str:
    """What config.json says of quantisation: other values, none, or two schemes."""
    config = json.loads(files["config.json"])
    given = config.pop("quantization_config")
    groups = given.get("config_groups")
    way = rng.randrange(8)
    if way == 0 and groups:
        other, told = mutate_json(groups["group_0"], rng, _WORDS)
        groups["group_1"] = other
        told = f"a second scheme, {told}"
    elif way == 1:
        given, told = rng.choice([None, {}, [], "x", {"quant_method": "compressed-tensors"}]), "no scheme"
    elif way < 6 and groups:
        groups["group_0"]["weights"], told = mutate_json(groups["group_0"]["weights"], rng, _WORDS)
    else:
        given, told = mutate_json(given, rng, _WORDS)
    config["quantization_config"] = given
    files["config.json"] = dumps(config).encode(errors="replace")
    return f"config: {told}"


def _other_tensors(files: Files, rng: random.Random) -> str:
    """A tensor that is missing, elsewhere, twice, of another shape or of another dtype."""
    pieces = pieces_of(files[_WEIGHTS])
    name, other = _chosen(pieces, rng), _chosen(pieces, rng)
    module, _, last = name.rpartition(".")
    way = rng.randrange(8)
    if way < 5:
        told = change_tensor(pieces, name, other, rng)
    elif way == 5:
        new = rng.choice([*_NAMES, *_FOREIGN])
        told = f"called {new}"
        pieces[f"{module}.{new}"] = pieces.pop(name)
    elif way == 6:  # beside codes of another layer, or beside a weight that is in floats
        target = rng.choice([each for each in pieces if each.endswith((".weight", "_proj", "_packed"))])
        told = f"also beside {target}"
        pieces[f"{target.rpartition('.')[0]}.{last}"] = pieces[name]
    else:
        new = rng.choice([*_NAMES, *_FOREIGN])
        told = f"with a {new}"
        pieces[f"{module}.{new}"] = pieces[other]
    files[_WEIGHTS] = pack_pieces(pieces)
    return f"{name}: {told}"
