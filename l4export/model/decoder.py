"""The reference graph: Llama 4's text model in standard ONNX and the `l4` dialect, weights as recipes.

It follows transformers' `Llama4ForCausalLM` operation for operation and is executable as it stands. Every pass of the
pipeline is judged against it. Letters in shapes are those of `l4export.graph.dialect`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from l4export.graph.contents import LayerValue, note
from l4export.graph.dialect import DOMAIN, NO_LIMIT
from l4export.model.config import ModelConfig
from l4export.model.tensors import tensors
from l4export.model.weighted_graph import IR_VERSION, WeightedGraph, WeightSource, graph_input, typed

__all__ = ["IR_VERSION", "build_decoder"]


def build_decoder(
    config: ModelConfig, weights: WeightSource, dtype: ir.DataType, image_token: int | None = None
) -> ir.Model:
    """The decoder as an `ir.Model` that computes in `dtype` (FLOAT or FLOAT16).

    Inputs: `input_ids` int64 [B, S]; `attention_mask` int64 [B, total], ones then zeros; `past_key_values.{i}.key` and
    `.value` [B, K, past, d]; and three optional ones. `logits_to_keep` int64 []: 0, its default, asks for every
    position's logits, n for the last n of each row. `mask_start` int64 [B] or [1]: the tokens that lie in the cache
    before the mask's first column, so that a mask need not grow with the sequence; 0 by default. `cache_start` int64
    [B] or [1]: the position of the token in slot 0; tokens before it are in no cache and nobody sees them; 0 by
    default. With an `image_token` there is one more, `image_features` [image_tokens, D]: the rows that stand for the
    tokens of this call that are it, in row-major order; with no rows, the default, these tokens are as any other.
    Outputs: `logits` float32 [B, S or n, V]; `present.{i}.key`, `.value`.

    Raises what `weights` raises for a tensor that is missing or has another shape.
    """
    return _Decoder(config, weights, dtype).build(image_token)


@dataclass(frozen=True)
class _Step:
    """Values that every layer of one call shares."""

    slots: ir.Value
    positions: ir.Value
    past_length: ir.Value
    total_length: ir.Value
    cache_start: ir.Value
    cos: ir.Value | None
    sin: ir.Value | None


class _Decoder(WeightedGraph):
    def __init__(self, config: ModelConfig, weights: WeightSource, dtype: ir.DataType) -> None:
        super().__init__(tensors(config), weights, dtype)
        self.config = config

    def build(self, image_token: int | None) -> ir.Model:
        config, b = self.config, self.b
        input_ids = graph_input("input_ids", ir.DataType.INT64, ["batch", "sequence"])
        mask = graph_input("attention_mask", ir.DataType.INT64, ["batch", "total"])
        keep = b.initializer(ir.tensor(np.asarray(0, dtype=np.int64)), "logits_to_keep")
        mask_start, cache_start = self.start("mask_start"), self.start("cache_start")
        caches = [self.cache(layer) for layer in range(config.num_hidden_layers)]

        past_length, new_length, total = b.ops(
            "SequenceLengths",
            *(mask, input_ids, mask_start, cache_start),
            outputs=3,
            domain=DOMAIN,
            name="attention_mask",
            max_context=NO_LIMIT,
        )
        step = self.step(past_length, total, input_ids, cache_start)
        embedding = self.weight("model.embed_tokens.weight")
        tokens = b.op("CheckedTokens", input_ids, domain=DOMAIN, name="input_ids", vocab_size=config.vocab_size)
        x = b.op("Gather", embedding, tokens, name="embed_tokens")
        optional = [keep, mask_start, cache_start]
        if image_token is not None:
            optional.append(features := self.image_features())
            x = b.op("MergeImages", x, tokens, features, domain=DOMAIN, name="image_features", image_token=image_token)
            note(x, LayerValue("merged", 0))
        presents: list[ir.Value] = []
        for layer, (past_key, past_value) in enumerate(caches):
            with b.scope(f"layers.{layer}"):
                x, key, value = self.layer(layer, x, past_key, past_value, step)
            presents += [key, value]
        x = self.norm(x, "model.norm.weight", "norm")
        x = b.op("KeepLastPositions", x, new_length, keep, domain=DOMAIN, name="logits_to_keep")
        logits = self.head(x, embedding)
        inputs = [input_ids, mask, *(value for pair in caches for value in pair), *optional]
        return self.model(inputs, [logits, *presents], "llama4")

    def start(self, name: str) -> ir.Value:
        """An input of one number, or of one number for each row. It is 0 unless a client gives it."""
        value = self.b.initializer(ir.tensor(np.zeros(1, dtype=np.int64)), name)
        value.shape = ir.Shape(["batch_or_1"])
        return value

    def image_features(self) -> ir.Value:
        """An input of rows that stand for image tokens. There are none unless a client gives them."""
        width = self.config.hidden_size
        value = self.b.initializer(ir.tensor(np.zeros((0, width), self.dtype.numpy())), "image_features")
        value.shape = ir.Shape(["image_tokens", width])
        return value

    def step(self, past_length: ir.Value, total: ir.Value, input_ids: ir.Value, cache_start: ir.Value) -> _Step:
        """Slots, positions and, where a layer rotates, the angles of this call's tokens."""
        b, config = self.b, self.config
        slots = b.op("Slots", past_length, input_ids, domain=DOMAIN, name="slots")
        positions = b.op("Positions", slots, cache_start, domain=DOMAIN, name="positions")
        if not any(config.rope_layers):
            return _Step(slots, positions, past_length, total, cache_start, None, None)
        inv_freq = b.initializer(ir.tensor(config.inv_freq().astype(np.float32)), "rotary_emb.inv_freq")
        cos, sin = b.ops("RotaryAngles", slots, inv_freq, outputs=2, domain=DOMAIN, name="rotary_emb")
        if self.dtype != ir.DataType.FLOAT:
            cos = b.op("Cast", cos, to=int(self.dtype), name="rotary_emb/cos")
            sin = b.op("Cast", sin, to=int(self.dtype), name="rotary_emb/sin")
        return _Step(slots, positions, past_length, total, cache_start, cos, sin)

    def layer(
        self, layer: int, x: ir.Value, past_key: ir.Value, past_value: ir.Value, step: _Step
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """x [B, S, D] -> x + attention + feed-forward, and the layer's caches."""
        b, prefix = self.b, f"model.layers.{layer}"
        h = self.norm(x, f"{prefix}.input_layernorm.weight", "input_layernorm")
        with b.scope("attn"):
            attended, key, value = self.attention(layer, h, past_key, past_value, step)
        x = b.op("Add", x, attended, name="attn_residual")
        h = self.norm(x, f"{prefix}.post_attention_layernorm.weight", "post_attention_layernorm")
        if self.config.is_moe(layer):
            with b.scope("moe"):
                y = self.moe(layer, h)
        else:
            with b.scope("mlp"):
                y = self.mlp(f"{prefix}.feed_forward", h)
        x = typed(b.op("Add", x, y, name="mlp_residual"), self.dtype, ["batch", "sequence", self.config.hidden_size])
        return note(x, LayerValue("residual", layer)), key, value

    def attention(
        self, layer: int, h: ir.Value, past_key: ir.Value, past_value: ir.Value, step: _Step
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The projections of h, attention over the caches, and the output projection; also the layer's caches."""
        config, prefix = self.config, f"model.layers.{layer}.self_attn"
        q, k, v = (self.linear(h, f"{prefix}.{name}.weight", name) for name in ("q_proj", "k_proj", "v_proj"))
        q, k = self.positioned(layer, q, k, step)
        chunk = config.attention_chunk_size if config.chunked_layers[layer] else None
        y, key, value = self.b.ops(
            "Attention",
            *(q, k, v, past_key, past_value, step.slots, step.past_length, step.total_length, step.cache_start),
            outputs=3,
            domain=DOMAIN,
            name="Attention",
            num_heads=config.num_attention_heads,
            kv_num_heads=config.num_key_value_heads,
            chunk_size=chunk or NO_LIMIT,
        )
        key.name, value.name = f"present.{layer}.key", f"present.{layer}.value"
        y = self.linear(y, f"{prefix}.o_proj.weight", "o_proj")
        note(key, LayerValue("present_key", layer))
        note(value, LayerValue("present_value", layer))
        return y, self.cache_output(key), self.cache_output(value)

    def positioned(self, layer: int, q: ir.Value, k: ir.Value, step: _Step) -> tuple[ir.Value, ir.Value]:
        """Queries and keys with their positions: RoPE followed by QK norm, or temperature."""
        config = self.config
        if config.rope_layers[layer]:
            heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
            q, k = self.rotate(q, heads, step, "q_rotary"), self.rotate(k, kv_heads, step, "k_rotary")
            if config.use_qk_norm:
                q, k = self.qk_norm(q, heads, "q_norm"), self.qk_norm(k, kv_heads, "k_norm")
        elif config.attn_temperature_tuning:
            scales = {"floor_scale": float(config.floor_scale), "attn_scale": float(config.attn_scale)}
            q = self.b.op("Temperature", q, step.positions, domain=DOMAIN, name="q_temperature", **scales)
        return q, k

    def rotate(self, x: ir.Value, heads: int, step: _Step, name: str) -> ir.Value:
        """RoPE over adjacent pairs of each head.

        YaRN multiplies rotated vectors by a factor. Here the factor is applied before the rotation, which gives the
        same, so that norms may still change places with rotations.
        """
        if (factor := self.config.rope_attention_factor) != 1:
            x = self.b.op("Mul", x, self.b.constant(np.asarray(factor, self.dtype.numpy()), f"{name}/factor"))
        return self.b.op("RotaryEmbedding", x, step.cos, step.sin, name=name, interleaved=1, num_heads=heads)

    def qk_norm(self, x: ir.Value, heads: int, name: str) -> ir.Value:
        """Weightless RMS norm of each head."""
        config = self.config
        attributes = {"num_heads": heads, "head_dim": config.head_dim, "epsilon": config.rms_norm_eps}
        return self.b.op("QKNorm", x, domain=DOMAIN, name=name, **attributes)

    def moe(self, layer: int, h: ir.Value) -> ir.Value:
        """Shared expert plus the routed experts of each token."""
        b, k, prefix = self.b, self.config.num_experts_per_tok, f"model.layers.{layer}.feed_forward"
        logits = note(self.linear(h, f"{prefix}.router.weight", "router"), LayerValue("router_logits", layer))
        gate_up = self.weight(f"{prefix}.experts.gate_up_proj")
        down = self.weight(f"{prefix}.experts.down_proj")
        routed = b.op("MoE", h, logits, gate_up, down, domain=DOMAIN, name="experts", k=k)
        with b.scope("shared_expert"):
            shared = self.mlp(f"{prefix}.shared_expert", h)
        return b.op("Add", shared, routed, name="Add")

    def mlp(self, prefix: str, h: ir.Value) -> ir.Value:
        """down(silu(gate(h)) * up(h)), no biases."""
        b = self.b
        gate = self.linear(h, f"{prefix}.gate_proj.weight", "gate_proj")
        up = self.linear(h, f"{prefix}.up_proj.weight", "up_proj")
        gated = b.op("Mul", b.op("Swish", gate, name="act"), up, name="Mul")
        return self.linear(gated, f"{prefix}.down_proj.weight", "down_proj")

    def norm(self, x: ir.Value, weight: str, name: str) -> ir.Value:
        """x / sqrt(mean(x^2) + eps) * weight over the hidden width."""
        return self.b.op(
            "RMSNormalization", x, self.weight(weight), name=name, axis=-1, epsilon=self.config.rms_norm_eps
        )

    def head(self, x: ir.Value, embedding: ir.Value) -> ir.Value:
        """Logits in float32; a tied head reads the embedding transposed, so that its bytes are stored once."""
        b, config = self.b, self.config
        if config.tie_word_embeddings:
            head = b.op("Transpose", embedding, perm=[1, 0], name="lm_head/Transpose")
            logits = b.op("MatMul", x, head, name="lm_head/MatMul")
        else:
            logits = self.linear(x, "lm_head.weight", "lm_head")
        if self.dtype != ir.DataType.FLOAT:
            logits = b.op("Cast", logits, to=int(ir.DataType.FLOAT), name="lm_head/Cast")
        logits.name = "logits"
        return typed(logits, ir.DataType.FLOAT, ["batch", "logits_sequence", config.vocab_size])

    def cache(self, layer: int) -> tuple[ir.Value, ir.Value]:
        """The inputs that carry a layer's past keys and values."""
        shape: list[int | str] = ["batch", self.config.num_key_value_heads, "past", self.config.head_dim]
        key, value = (graph_input(f"past_key_values.{layer}.{kind}", self.dtype, shape) for kind in ("key", "value"))
        return note(key, LayerValue("past_key", layer)), note(value, LayerValue("past_value", layer))

    def cache_output(self, value: ir.Value) -> ir.Value:
        shape: list[int | str] = ["batch", self.config.num_key_value_heads, "present", self.config.head_dim]
        return typed(value, self.dtype, shape)
