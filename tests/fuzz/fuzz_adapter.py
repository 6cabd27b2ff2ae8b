"""Class `adapter`: directories that PEFT might have saved, merged into a checkpoint that is built and run."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np

from fuzz_adapter_definition import check_merged
from fuzz_case import Case, Subject
from fuzz_checkpoint import use_checkpoint
from fuzz_files import (
    Files,
    change_tensor,
    mutate_safetensors,
    pack_pieces,
    pieces_of,
    read_files,
    write_changed,
)
from fuzz_json import damaged_text, dumps, mutate_json
from fuzz_valid import small_checkpoint

__all__ = ["AdapterSubject"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_EXPERTS, _HIDDEN, _INNER, _VOCABULARY = 4, 64, 32, 320
_WORDS = [
    *(
        "LORA",
        "IA3",
        "gaussian",
        "pissa",
        "olora",
        "loftq",
        "all-linear",
        "all",
        "none",
        "q_proj",
        "experts",
        "lm_head",
    ),
    *("feed_forward.experts.down_proj", "(a+)+$", "^q_proj", r"model\.layers\.0", 2, 3, 8, 10**6, 0.5, 1e39),
    *({"q_proj": 3}, {"(a|a)*$": 2}, {"o_proj": 0}, {"": 2}, ["q_proj", "q_proj"], [""], ["lm_head"]),
]
_FIELDS: list[dict[str, Any]] = [
    {"use_dora": True},
    {"use_rslora": True},
    {"lora_bias": True},
    {"init_lora_weights": "pissa"},
    {"layer_replication": [[0, 2], [1, 2]]},
    {"layers_to_transform": [0]},
    {"trainable_token_indices": [1]},
    {"alora_invocation_tokens": [1]},
    {"rank_pattern": {f"layer{number}": 2 for number in range(11_000)}},
    {"target_parameters": ["feed_forward.experts.gate_up_proj"]},
    {"modules_to_save": ["lm_head", "embed_tokens"]},
    {"base_model_name_or_path": "meta-llama/other\x1b[31m"},
]
_OPTIONS: list[dict[str, Any]] = [{}, {}, {"layers": (0, 1)}, {"kv_layout": "chunked"}, {"quant": "int8"}]


class AdapterSubject(Subject):
    """Adapters of several kinds; whatever is built must run, on weights that are those of the definition."""

    name = "adapter"

    def prepare(self) -> None:
        """A checkpoint, and one adapter of each kind."""
        from adapters import pair, write_adapter

        small_checkpoint(self.valid / "scout", "scout")
        rng = np.random.default_rng(5)
        layer = "model.layers.{}.self_attn.{}_proj"
        both, ranks = [layer.format(0, "q"), layer.format(1, "q")], {"o_proj": 3}
        linears = {}
        for name in both:
            linears |= pair(name, 64, _HIDDEN)
        magnitudes = {f"{name}.lora_magnitude_vector": rng.uniform(0.5, 2, 64).astype(np.float32) for name in both}
        output = pair(layer.format(1, "o"), _HIDDEN, 64, 3)
        experts, apart = {}, {}
        for number in range(2):
            module = f"model.layers.{number}.feed_forward.experts"
            experts |= pair(module, _INNER, _HIDDEN, 2 * _EXPERTS)
            experts |= pair(f"{module}.base_layer", _HIDDEN, 2 * _INNER, 2 * _EXPERTS)
            for expert in range(0, _EXPERTS, number + 1):
                apart |= pair(f"{module}.{expert}.up_proj", _INNER, _HIDDEN)
                apart |= pair(f"{module}.{expert}.down_proj", _HIDDEN, _INNER)
        embedding = {"model.embed_tokens.lora_embedding_A": 0.1 * rng.standard_normal((2, _VOCABULARY), np.float32)}
        embedding["model.embed_tokens.lora_embedding_B"] = 0.1 * rng.standard_normal((_HIDDEN, 2), np.float32)
        whole = {"lm_head.weight": 0.1 * rng.standard_normal((_VOCABULARY, _HIDDEN), np.float32)}
        targets = [f"feed_forward.experts.{name}" for name in ("gate_up_proj", "down_proj")]
        named = {"target_modules": ["q_proj", "o_proj"], "rank_pattern": ranks, "alpha_pattern": {"o_proj": 1}}
        write_adapter(self.valid / "linears", linears | output, **named)
        write_adapter(self.valid / "dora", linears | magnitudes, use_dora=True, target_modules=["q_proj"])
        write_adapter(self.valid / "experts", experts, target_parameters=targets)
        write_adapter(self.valid / "apart", apart, use_rslora=True, target_modules=["up_proj", "down_proj"])
        saved = {"modules_to_save": ["lm_head"], "target_modules": ["embed_tokens"]}
        write_adapter(self.valid / "ends", embedding | whole, **saved)

    def begin(self) -> None:
        """Build one with quantised weights, which loads the kernels, and run it."""
        self.files = {name: read_files(self.valid / name) for name in ("linears", "dora", "experts", "apart", "ends")}
        options = {**_OPTIONS[-1], "adapters": (self.valid / "experts",)}
        use_checkpoint(self.valid / "scout", self.valid / f"engine-{os.getpid()}", options)

    def make(self, rng: random.Random, place: Path) -> Case:
        """Other numbers in some tensors, or one to three other changes; a second adapter, and options to build with."""
        name, options = rng.choice(list(self.files)), rng.choice(_OPTIONS)
        numbers_alone = rng.random() < 0.3
        change = _other_numbers if numbers_alone else _change
        path = place / "adapter"
        what = [name, str(options), *write_changed(path, self.files[name], change, rng, whole=not numbers_alone)]
        adapters = (path,)
        if not numbers_alone and rng.random() < 0.1:
            adapters = rng.choice([(path, path), (self.valid / "experts", path), (path, self.valid / "linears")])
            what.append(f"of {len(adapters)} adapters")
        layers = options.get("layers", (0, 2))

        def run() -> None:
            use_checkpoint(self.valid / "scout", place / "engine", {**options, "adapters": adapters})
            check_merged(self.valid / "scout", adapters, layers, numbers_alone)

        return Case(run, what, output="engine")


def _other_numbers(files: Files, rng: random.Random) -> str:
    """Numbers that no training ends with, or that it may."""
    pieces = pieces_of(files[_WEIGHTS])
    name = rng.choice(list(pieces))
    entry, data = pieces[name]
    values = np.frombuffer(bytearray(data), np.float32)
    number = rng.choice([0.0, -0.0, 1e-45, 1.0, -3.0, 1e4, 1e18, 1e20, 3e38, -3e38, np.inf, np.nan])
    step = rng.choice([1, 7, len(values)])
    values[rng.randrange(min(step, len(values))) :: step] = number
    pieces[name] = (entry, values.tobytes())
    files[_WEIGHTS] = pack_pieces(pieces)
    return f"{name}: {number} every {step}"


def _change(files: Files, rng: random.Random) -> str:
    """Change one of the two files; says how. What an earlier change has made unreadable stays as it is."""
    way = rng.randrange(12)
    try:
        if way < 4:
            config = json.loads(files[_CONFIG])
            if way == 0:
                config |= (more := rng.choice(_FIELDS))
                told = f"with {str(more)[:80]}"
            else:
                config, told = mutate_json(config, rng, _WORDS)
            files[_CONFIG] = dumps(config).encode(errors="replace")
            return f"config: {told}"
        if way == 4:
            files[_CONFIG], told = damaged_text(files[_CONFIG].decode(errors="replace"), rng)
            return f"config: {told}"
        if way == 5:
            files[_WEIGHTS], told = mutate_safetensors(files[_WEIGHTS], rng)
            return told
        if way == 6:
            files["adapter_model.bin"] = files.pop(_WEIGHTS)
            return "a pickle by its name"
        return _other_tensors(files, rng) if way < 11 else _other_numbers(files, rng)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return "as it was"


def _other_tensors(files: Files, rng: random.Random) -> str:
    """A tensor that is missing, another one's, of another shape or dtype, or of another name."""
    pieces = pieces_of(files[_WEIGHTS])
    name, other = rng.choice(list(pieces)), rng.choice(list(pieces))
    if rng.random() < 0.5:
        told = change_tensor(pieces, name, other, rng)
    else:
        new = _other_name(name, rng)
        told = f"called {new[:80]!r}"
        pieces[new] = pieces.pop(name) if rng.random() < 0.7 else pieces[name]
    files[_WEIGHTS] = pack_pieces(pieces)
    return f"{name}: {told}"


def _other_name(name: str, rng: random.Random) -> str:
    """Names that adapters have, or that are no names."""
    module, _, last = name.removesuffix(".weight").rpartition(".")
    ways = [
        name.removeprefix("base_model.model."),
        name.replace("base_model.model.", "base_model.model.language_model."),
        name.replace("base_model.model.", "base_model.model.base_model.model."),
        f"{module}.{last}.default.weight",
        f"{module}.base_layer.{last}.weight",
        name.replace(".base_layer", ""),
        name.replace("lora_A", "lora_B") if "lora_A" in name else name.replace("lora_B", "lora_A"),
        name.replace("layers.0", rng.choice(["layers.1", "layers.2", "layers.-1", "layers.00", "layers.99999999"])),
        name.replace("experts.0", rng.choice(["experts.3", "experts.4", "experts.00", "experts.9999", "experts.x"])),
        name.replace("q_proj", rng.choice(["k_proj", "o_proj", "qkv_proj", "router"])),
        name.replace("_proj", "_proj.modules_to_save.default"),
        f"{module}.lora_magnitude_vector",
        f"{module}.{rng.choice(['lora_C', 'bias', 'weight', 'lora_embedding_A', 'lora_A', 'scaling'])}",
        rng.choice(["", "base_model.model.", "base_model.model.lora_A.weight", "x" * 5000, "a\nb\x1b[2J", ".." * 200]),
    ]
    return rng.choice(ways)
