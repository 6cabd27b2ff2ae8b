"""The inventory of a model: the name and the shape of each of its tensors, from the config alone.

This is the one place that knows them. The graphs, sample checkpoints, the streamed reference, sizes and counts
all take them from here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from l4export.model.config import ModelConfig
from l4export.model.vision_config import VisionConfig
from l4export.model.weight_names import kind_of

__all__ = ["ParameterCount", "parameter_count", "tensors", "vision_tensors"]

Shape = tuple[int, ...]


def tensors(config: ModelConfig) -> dict[str, Shape]:
    """Name and shape of every tensor, in the order in which a token meets them.

    Names are those of transformers' `Llama4ForCausalLM`, which a checkpoint may prefix (`Checkpoint.prefix`);
    `kind_of` and `layer_of` (`l4export.model.weight_names`) say what a name stands for. Linear layers are stored
    [out, in] and have no bias. The routed experts of a layer are two tensors [experts, in, out]; the columns of the
    first are the gates, then the ups. A tied head has no tensor of its own.
    """
    embedding = (config.vocab_size, config.hidden_size)
    found: dict[str, Shape] = {"model.embed_tokens.weight": embedding}
    for layer in range(config.num_hidden_layers):
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in _layer(config, layer).items()}
    found["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        found["lm_head.weight"] = embedding
    return found


def vision_tensors(config: VisionConfig, width: int) -> dict[str, Shape]:
    """Name and shape of every tensor of a vision tower for a decoder of `width` channels, in the order of their use.

    Names are those of transformers' `Llama4ForConditionalGeneration`. Linear layers are stored [out, in]; those of the
    layers have biases.
    """
    tower, hidden, inner, out = "vision_model", config.hidden_size, config.intermediate_size, config.projector_size
    found: dict[str, Shape] = {
        f"{tower}.patch_embedding.linear.weight": (hidden, 3 * config.patch_size**2),
        f"{tower}.class_embedding": (hidden,),
        f"{tower}.positional_embedding_vlm": (config.grid**2 + 1, hidden),
        **_layer_norm(f"{tower}.layernorm_pre", hidden),
    }
    for layer in range(config.num_hidden_layers):
        name = f"{tower}.model.layers.{layer}"
        found |= _layer_norm(f"{name}.input_layernorm", hidden)
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            found |= _linear(f"{name}.self_attn.{projection}", hidden, hidden)
        found |= _layer_norm(f"{name}.post_attention_layernorm", hidden)
        found |= _linear(f"{name}.mlp.fc1", inner, hidden) | _linear(f"{name}.mlp.fc2", hidden, inner)
    return {
        **found,
        **_layer_norm(f"{tower}.layernorm_post", hidden),
        f"{tower}.vision_adapter.mlp.fc1.weight": (out, inner),
        f"{tower}.vision_adapter.mlp.fc2.weight": (out, out),
        "multi_modal_projector.linear_1.weight": (width, out),
    }


def _layer_norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, rows: int, columns: int) -> dict[str, Shape]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _layer(config: ModelConfig, layer: int) -> dict[str, Shape]:
    """The tensors of one layer, by their names within it."""
    hidden, query = config.hidden_size, config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    return {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (query, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, query),
        "post_attention_layernorm.weight": (hidden,),
        **(_moe(config) if config.is_moe(layer) else _mlp("feed_forward", hidden, config.intermediate_size_mlp)),
    }


def _moe(config: ModelConfig) -> dict[str, Shape]:
    experts, hidden, inner = config.num_local_experts, config.hidden_size, config.intermediate_size
    return {
        "feed_forward.router.weight": (experts, hidden),
        "feed_forward.experts.gate_up_proj": (experts, hidden, 2 * inner),
        "feed_forward.experts.down_proj": (experts, inner, hidden),
        **_mlp("feed_forward.shared_expert", hidden, inner),
    }


def _mlp(name: str, hidden: int, inner: int) -> dict[str, Shape]:
    return {
        f"{name}.gate_proj.weight": (inner, hidden),
        f"{name}.up_proj.weight": (inner, hidden),
        f"{name}.down_proj.weight": (hidden, inner),
    }


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a text model: all of them, and those that one token uses."""

    total: int
    active: int


def parameter_count(config: ModelConfig) -> ParameterCount:
    """How many parameters a model has; a token uses all of them but the routed experts that it does not choose."""
    sizes = {name: math.prod(shape) for name, shape in tensors(config).items()}
    routed = sum(size for name, size in sizes.items() if kind_of(name).startswith("experts"))
    one_expert_a_layer = routed // max(1, config.num_local_experts)
    total = sum(sizes.values())
    return ParameterCount(total, total - routed + one_expert_a_layer * config.num_experts_per_tok)
