"""Sample checkpoints in Hugging Face layout: small models with seeded weights, and full-size ones without any."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from l4export.checkpoint.sample_files import require_holes, write_files
from l4export.checkpoint.sample_formats import FORMATS, sample_format
from l4export.checkpoint.sample_tokenizer import write_tokenizer
from l4export.checkpoint.sample_vision import whole_config, write_processor
from l4export.checkpoint.sample_weights import weights_of_sample
from l4export.errors import InputError, StorageError

__all__ = ["FORMATS", "FULL_VARIANTS", "SIZES", "VARIANTS", "hf_config", "write_sample"]

VARIANTS = ("scout", "maverick", "guard", "mobile")
SIZES = ("tiny", "bench", "full")
FULL_VARIANTS = ("scout", "maverick")
"""Variants of size `full`: the released shapes, without weights."""

_SHARD_BYTES = 10**9
_FULL_SHARD_BYTES = 5 * 10**9  # as in the released checkpoints

_SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "dtype": "float32",
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 32,
        "intermediate_size_mlp": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 4,
        "attention_chunk_size": 16,
        "floor_scale": 8,
        "max_position_embeddings": 4096,
        "bos_token_id": 240,
        "eos_token_id": [241, 247, 248],
        "pad_token_id": 250,
    },
    "bench": {
        "dtype": "bfloat16",
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 4096,
        "intermediate_size_mlp": 8192,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_local_experts": 16,
        "attention_chunk_size": 8192,
        "floor_scale": 8192,
        "max_position_embeddings": 262144,
        "bos_token_id": 31000,
        "eos_token_id": [31001, 31007, 31008],
        "pad_token_id": 31018,
    },
    # Llama-4-Scout-17B-16E-Instruct; what Maverick has otherwise is in `hf_config`.
    "full": {
        "dtype": "bfloat16",
        "vocab_size": 202048,
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_local_experts": 16,
        "attention_chunk_size": 8192,
        "floor_scale": 8192,
        "max_position_embeddings": 10485760,
        "bos_token_id": 200000,
        "eos_token_id": [200001, 200007, 200008],
        "pad_token_id": 200018,
    },
}


def hf_config(variant: str, size: str) -> dict[str, Any]:
    """The config.json of a sample, as transformers 5 writes it.

    Raises:
        InputError: an unknown name, or a variant that has no such size.
    """
    _check_sample(variant, size)
    shapes = _SHAPES[size]
    layers = shapes["num_hidden_layers"]
    dense = variant in ("guard", "mobile")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 500000.0}
    if variant == "scout":
        rope |= {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0}
        rope |= {"original_max_position_embeddings": 8192}
    config = {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        **shapes,
        "num_experts_per_tok": 0 if dense else 1,
        "moe_layers": [] if dense else list(range(1, layers, 2) if variant == "maverick" else range(layers)),
        "interleave_moe_layer_step": {"scout": 1, "maverick": 2}.get(variant, 0),
        "no_rope_layers": [1] * layers if dense else [1, 1, 1, 0] * (layers // 4),
        "use_qk_norm": variant in ("scout", "mobile"),
        "rms_norm_eps": 1e-5,
        "attn_temperature_tuning": variant != "mobile",
        "attn_scale": 0.1,
        "rope_parameters": rope,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": variant == "mobile",
    }
    if dense:
        config["num_local_experts"] = 0
    if variant == "guard":
        config["attention_chunk_size"] = None
    if (variant, size) == ("maverick", "full"):
        config |= {"num_local_experts": 128, "max_position_embeddings": 1048576}
    return config


def _check_sample(variant: str, size: str) -> None:
    for what, name, known in (("variant", variant, VARIANTS), ("size", size, SIZES)):
        if name not in known:
            raise InputError(f"sample: {what} {name[:40]!r} is unknown; choose {', '.join(known)}")
    if size == "full" and variant not in FULL_VARIANTS:
        raise InputError(f"sample: variant {variant!r} has no size 'full'; choose {' or '.join(FULL_VARIANTS)}")


def write_sample(
    out: Path,
    variant: str,
    size: str,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    vision: bool = False,
    form: str = "float",
) -> None:
    """Writes the checkpoint `out`, which must not exist, from one of `VARIANTS`, one of `SIZES` and a seed.

    Each tensor has its own random generator, seeded with (seed, name): equal arguments give equal bytes, and how
    tensors are ordered or sharded does not matter. `progress(done, total)` is told bytes. Size `full` has no weights:
    its tensors are holes in sparse files, which read as zeros and take no room. With `vision` the model sees images: it
    has a vision tower, the image processor's files, and a tokenizer with the tokens of images. `form` is one of
    `FORMATS` (`l4export.checkpoint.sample_formats`): quantised ones have codes made of the float sample's weights, and
    at size `full` scales, with holes for the codes. Built in a temporary sibling and renamed when complete.

    Raises:
        InputError: bad arguments.
        StorageError: writing fails, or `full` is asked of a file system that does not keep holes.
    """
    if form not in FORMATS:
        raise InputError(f"sample: format {form[:40]!r} is unknown; choose {', '.join(FORMATS)}")
    stored = sample_format(form, size)
    raw = hf_config(variant, size)
    if form != "float":
        raw["dtype"] = "bfloat16"
    if vision:
        raw = whole_config(raw, variant, size)
    if stored.config:
        raw["quantization_config"] = stored.config
    weights = weights_of_sample(raw)
    if stored.scheme and not any(map(stored.quantises, weights)):
        raise InputError(
            f"sample: format {form!r} quantises routed experts, and {variant!r} has none; choose another format"
        )
    if os.path.lexists(out):
        raise InputError(f"{out}: exists already; choose another directory or remove it")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        try:
            (temporary / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
            if vision:
                write_processor(temporary, raw)
                write_tokenizer(temporary, raw)
            entries = stored.entries(weights)
            if size == "full":
                require_holes(temporary, out)
                holes = stored.contents_without_weights(weights, seed)
                write_files(temporary, entries, holes, _FULL_SHARD_BYTES, progress)
            else:
                write_files(temporary, entries, stored.contents(weights, seed), _SHARD_BYTES, progress)
            temporary.rename(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror}); check free space and permissions") from None
