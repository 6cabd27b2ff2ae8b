"""Class `checkpoint`: directories in Hugging Face layout, inspected and built."""

from __future__ import annotations

import contextlib
import json
import os
import random
from pathlib import Path
from typing import Any

from fuzz_case import Case, Subject
from fuzz_files import Files, mutate_safetensors, read_files, replace_file, write_files
from fuzz_json import damaged_text, dumps, mutate_json
from fuzz_tokenizer import mutate_tokenizer
from fuzz_valid import small_checkpoint, tokenizers

__all__ = ["CheckpointSubject", "use_checkpoint"]

_VARIANTS = ("scout", "maverick", "guard", "multimodal")
_WORDS = [
    *("llama4", "llama4_text", "llama3", "linear", "dynamic", "yarn", "longrope", "default", "silu", "swish", "gelu"),
    *("float32", "bfloat16", "chunked_attention", "full_attention", "Llama4ForCausalLM", "LlamaForCausalLM"),
    *({"rope_type": "llama3", "factor": 8.0}, {"rope_type": "yarn"}, {"quant_method": "fp8"}, [0, 1], [1, 0], [-1]),
]
_FIELDS: list[dict[str, Any]] = [
    {"rope_scaling": {}},
    {"rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    {"rope_theta": 0},
    {"quantization_config": {}},
    {"quantization_config": {"quant_method": "compressed-tensors"}},
    {"attention_bias": True},
    {"layer_types": ["chunked_attention", "full_attention"]},
    {"partial_rotary_factor": 0.5},
    {"no_rope_layer_interval": 0},
    {"interleave_moe_layer_step": -1},
    {"tie_word_embeddings": True},
    {"eos_token_id": []},
]
_OPTIONS: list[dict[str, Any]] = [
    {},
    {},
    {"kv_layout": "chunked"},
    {"kv_layout": "concat", "max_context": 1},
    {"target": "onnx"},
    {"layers": (0, 1)},
    {"quant": "int4"},
    {"quant": "int8"},
]


class CheckpointSubject(Subject):
    """Checkpoints of two layers; whatever is built must run."""

    name = "checkpoint"

    def prepare(self) -> None:
        """One checkpoint of each variant, with a tokenizer."""
        files = tokenizers()["bpe"]
        for name in _VARIANTS:
            small_checkpoint(self.valid / name, name)
            for file, data in files.items():
                (self.valid / name / file).write_bytes(data)

    def begin(self) -> None:
        """Build one with quantised weights, which loads the kernels, and run it."""
        self.files = {name: read_files(self.valid / name) for name in _VARIANTS}
        out = self.valid / f"engine-{os.getpid()}"
        for index, options in enumerate(_OPTIONS[-2:]):
            use_checkpoint(self.valid / "multimodal", out.with_name(f"{out.name}-{index}"), options)

    def make(self, rng: random.Random, place: Path) -> Case:
        """One to three changes of its files, and options to build it with."""
        variant, options = rng.choice(_VARIANTS), rng.choice(_OPTIONS)
        files, what = dict(self.files[variant]), [variant, str(options)]
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            what.append(_change(files, rng))
        path = place / rng.choice(["checkpoint"] * 9 + ["ck 'é $(x)"])
        write_files(path, files)
        if rng.random() < 0.25:
            what.append(replace_file(path / rng.choice(sorted(files)), rng))
        return Case(lambda: use_checkpoint(path, place / "engine", options), what, output="engine")


def _change(files: Files, rng: random.Random) -> str:
    """Change one of the files; says how. What an earlier change has made unreadable stays as it is."""
    weights = [name for name in files if name.endswith(".safetensors")]
    others = sorted(files.keys() - weights)
    way = rng.randrange(10)
    name = "config.json" if way < 4 else rng.choice(weights if way < 7 else others)
    if way == 7:
        files[name], told = damaged_text(files[name].decode(errors="replace"), rng)
        return f"{name}: {told}"
    if way == 8:
        more = rng.choice(["consolidated.00.pth", "tokenizer.model", "LICENSE", ".x", "é\x1b[31m", "a\nb", *weights])
        files[more] = rng.choice([b"", b"\x80\x04", files[weights[0]]])
        return f"with {more!r}"
    try:
        if way < 7 and name in weights:
            files[name], told = mutate_safetensors(files[name], rng)
        elif name == "tokenizer.json":
            files[name], changes = mutate_tokenizer(files[name], rng)
            told = "; ".join(changes)
        else:
            files[name], told = _changed_json(files[name], way == 0, rng)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
        told = "as it was"
    return f"{name}: {told}"


def _changed_json(data: bytes, with_field: bool, rng: random.Random) -> tuple[bytes, str]:
    """A JSON file with another value, or a config with a field that other checkpoints have."""
    value = json.loads(data)
    if with_field:
        more = rng.choice(_FIELDS)
        value.get("text_config", value).update(more)
        return dumps(value).encode(), f"with {more}"
    value, told = mutate_json(value, rng, ["x.safetensors", "../x.safetensors", "/dev/zero.safetensors", *_WORDS])
    return dumps(value).encode(), told


def use_checkpoint(checkpoint: Path, engine: Path, options: dict[str, Any]) -> None:
    """Inspect and build a checkpoint; run what was built."""
    import l4export
    from l4export.errors import InputError
    from l4export.quantization.policy import standard_policy

    given = {"max_context": 64, "jobs": 1, **options}
    if kind := given.pop("quant", None):
        given["policy"] = standard_policy(kind)
    l4export.inspect(checkpoint)
    manifest = l4export.build(checkpoint, engine, l4export.BuildOptions(**given))
    made = sorted(path.name for path in engine.iterdir())
    assert made == sorted(["manifest.json", *manifest.files]), f"the engine has the files {made}"
    l4export.inspect(engine)
    opened = l4export.load(engine, threads=1, verify=True)
    with contextlib.suppress(InputError):  # weights of which no token follows: they are as the checkpoint has them
        token = next(opened.generate([1], max_new_tokens=1))
        assert 0 <= token < manifest.model.vocab_size, f"token {token}"
