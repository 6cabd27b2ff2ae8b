"""Seeded checkpoints in Hugging Face layout: small Llama 4 models with random weights and every feature switched on."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from l4export.checkpoint.safetensors_writer import write_safetensors
from l4export.config import ModelConfig
from l4export.errors import InputError, StorageError

__all__ = ["SIZES", "VARIANTS", "hf_config", "write_sample"]

VARIANTS = ("scout", "maverick", "guard", "mobile")
SIZES = ("tiny", "bench")

_SHARD_BYTES = 10**9
_BLOCK = 8 * 2**20  # elements drawn at a time: 32 MiB of float32
_ROUTER_GAIN = 2.5  # standard deviation of router logits: scores from 0.1 to 0.99, experts clearly told apart
_LOGIT_GAIN = 2.5  # standard deviation of the logits


@dataclass(frozen=True)
class _Weight:
    """One tensor to draw: normal with a standard deviation, or a norm's (`std` None), uniform in [0.5, 1.5)."""

    name: str
    shape: tuple[int, ...]
    std: float | None


def hf_config(variant: str, size: str) -> dict[str, Any]:
    """The config.json of a sample, as transformers 5 writes it; raises `InputError` for an unknown name."""
    for what, name, known in (("variant", variant, VARIANTS), ("size", size, SIZES)):
        if name not in known:
            raise InputError(f"sample: {what} {name[:40]!r} is unknown; choose {', '.join(known)}")
    tiny = size == "tiny"
    layers = 4
    dense = variant in ("guard", "mobile")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 500000.0}
    if variant == "scout":
        rope |= {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0}
        rope |= {"original_max_position_embeddings": 8192}
    return {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "dtype": "float32" if tiny else "bfloat16",
        "vocab_size": 256 if tiny else 32000,
        "hidden_size": 64 if tiny else 2048,
        "intermediate_size": 32 if tiny else 4096,
        "intermediate_size_mlp": 96 if tiny else 8192,
        "num_hidden_layers": layers,
        "num_attention_heads": 4 if tiny else 16,
        "num_key_value_heads": 2 if tiny else 4,
        "head_dim": 16 if tiny else 128,
        "num_local_experts": 0 if dense else 4 if tiny else 16,
        "num_experts_per_tok": 0 if dense else 1,
        "moe_layers": [] if dense else list(range(1, layers, 2) if variant == "maverick" else range(layers)),
        "interleave_moe_layer_step": {"scout": 1, "maverick": 2}.get(variant, 0),
        "no_rope_layers": [1] * layers if dense else [1, 1, 1, 0],
        "attention_chunk_size": None if variant == "guard" else 16 if tiny else 8192,
        "use_qk_norm": variant in ("scout", "mobile"),
        "rms_norm_eps": 1e-5,
        "attn_temperature_tuning": variant != "mobile",
        "floor_scale": 8 if tiny else 8192,
        "attn_scale": 0.1,
        "rope_parameters": rope,
        "max_position_embeddings": 4096 if tiny else 262144,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": variant == "mobile",
        "bos_token_id": 240 if tiny else 31000,
        "eos_token_id": [241, 247, 248] if tiny else [31001, 31007, 31008],
        "pad_token_id": 250 if tiny else 31018,
    }


def write_sample(
    out: Path, variant: str, size: str, seed: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Writes the checkpoint `out`, which must not exist, from one of `VARIANTS`, one of `SIZES` and a seed.

    Each tensor has its own random generator, seeded with (seed, name): equal arguments give equal bytes, and how
    tensors are ordered or sharded does not matter. `progress(done, total)` is told bytes. Built in a temporary
    sibling and renamed when complete. Raises `InputError` for bad arguments, `StorageError` when writing fails.
    """
    raw = hf_config(variant, size)
    if os.path.lexists(out):
        raise InputError(f"{out}: exists already; choose another directory or remove it")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        try:
            (temporary / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
            _write_weights(temporary, raw, seed, progress)
            temporary.rename(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror}); check free space and permissions") from None


def _write_weights(path: Path, raw: dict[str, Any], seed: int, progress: Callable[[int, int], None] | None) -> None:
    """One file, or shards and their index if the weights exceed a shard."""
    dtype, itemsize = ("F32", 4) if raw["dtype"] == "float32" else ("BF16", 2)
    weights = {weight.name: weight for weight in _weights(ModelConfig.from_hf(raw, "sample"))}
    nbytes = {name: math.prod(weight.shape) * itemsize for name, weight in weights.items()}
    total, done = sum(nbytes.values()), 0

    def chunks(name: str) -> Iterator[np.ndarray]:
        nonlocal done
        for block in _blocks(weights[name], seed, dtype):
            yield block
            done += block.nbytes
            if progress is not None:
                progress(done, total)

    shards = _shards(nbytes)
    weight_map: dict[str, str] = {}
    for k, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{k:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        write_safetensors(path / file, [(name, dtype, weights[name].shape) for name in names], chunks)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _weights(config: ModelConfig) -> Iterable[_Weight]:
    """Every tensor of the text model, its deviation chosen so that activations stay of order one."""
    hidden, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
    query = config.num_attention_heads * config.head_dim
    inner, experts = config.intermediate_size, config.num_local_experts
    head_std = _LOGIT_GAIN / math.sqrt(hidden)

    def linear(name: str, rows: int, columns: int, gain: float = 1.0) -> _Weight:
        return _Weight(f"{name}.weight", (rows, columns), gain / math.sqrt(columns))

    def mlp(name: str, width: int) -> list[_Weight]:
        gate, up = (linear(f"{name}.{part}_proj", width, hidden) for part in ("gate", "up"))
        return [gate, up, linear(f"{name}.down_proj", hidden, width)]

    embed_std = head_std if config.tie_word_embeddings else 1.0
    yield _Weight("model.embed_tokens.weight", (config.vocab_size, hidden), embed_std)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        yield _Weight(f"{prefix}.input_layernorm.weight", (hidden,), None)
        for part, width in (("q", query), ("k", kv), ("v", kv)):
            yield linear(f"{prefix}.self_attn.{part}_proj", width, hidden)
        yield linear(f"{prefix}.self_attn.o_proj", hidden, query)
        yield _Weight(f"{prefix}.post_attention_layernorm.weight", (hidden,), None)
        block = f"{prefix}.feed_forward"
        if config.is_moe(layer):
            yield linear(f"{block}.router", experts, hidden, _ROUTER_GAIN)
            # Experts are stored [expert, in, out], the other way round than linear layers.
            yield _Weight(f"{block}.experts.gate_up_proj", (experts, hidden, 2 * inner), hidden**-0.5)
            yield _Weight(f"{block}.experts.down_proj", (experts, inner, hidden), inner**-0.5)
            yield from mlp(f"{block}.shared_expert", inner)
        else:
            yield from mlp(block, config.intermediate_size_mlp)
    yield _Weight("model.norm.weight", (hidden,), None)
    if not config.tie_word_embeddings:
        yield _Weight("lm_head.weight", (config.vocab_size, hidden), head_std)


def _shards(nbytes: dict[str, int]) -> list[list[str]]:
    """Names cut into consecutive groups of at most a shard's bytes."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in nbytes.items():
        if groups[-1] and filled + size > _SHARD_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _blocks(weight: _Weight, seed: int, dtype: str) -> Iterator[np.ndarray]:
    """The tensor's bytes in blocks, uint8; drawn in float32, rounded to bfloat16 if `dtype` is BF16."""
    key = hashlib.sha256(f"{seed}/{weight.name}".encode()).digest()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(key, "little")))
    count = math.prod(weight.shape)
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        if weight.std is None:
            values = generator.random(size, np.float32) + np.float32(0.5)
        else:
            values = generator.standard_normal(size, np.float32)
            values *= np.float32(weight.std)
        yield (values if dtype == "F32" else values.astype(ml_dtypes.bfloat16)).view(np.uint8)
