"""Llama 4's text model in plain NumPy and float64: no cache, one row, positions as large as one likes.

Written from the model's definition (transformers' `Llama4ForCausalLM`), not from the graph: absolute positions
everywhere, a mask for chunks, every expert on its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Array = np.ndarray


class NumpyLlama4:
    """A checkpoint with one safetensors file, its config.json as transformers 5 writes it."""

    def __init__(self, checkpoint: Path) -> None:
        self.config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
        self.weights = {k: v.astype(np.float64) for k, v in load_file(checkpoint / "model.safetensors").items()}

    def logits(self, ids: Array, start: int = 0, angle_dtype: type = np.float64) -> Array:
        """ids [tokens] at positions start, start + 1, ... of a text whose first `start` tokens are forgotten.

        `angle_dtype` is that in which position * frequency is taken. Returns float64 [tokens, vocab].
        """
        c, w = self.config, self.weights
        positions = start + np.arange(len(ids))
        x = w["model.embed_tokens.weight"][ids]
        for layer in range(c["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            x = x + self._attention(layer, self._norm(x, f"{name}.input_layernorm"), positions, angle_dtype)
            h = self._norm(x, f"{name}.post_attention_layernorm")
            moe = layer in c["moe_layers"]
            x = x + (self._moe(f"{name}.feed_forward", h) if moe else self._mlp(f"{name}.feed_forward", h))
        head = w["model.embed_tokens.weight"] if c["tie_word_embeddings"] else w["lm_head.weight"]
        return self._norm(x, "model.norm") @ head.T

    def _attention(self, layer: int, h: Array, positions: Array, angle_dtype: type) -> Array:
        c, name = self.config, f"model.layers.{layer}.self_attn"
        width, heads, kv_heads = c["head_dim"], c["num_attention_heads"], c["num_key_value_heads"]
        q, k, v = (h @ self.weights[f"{name}.{p}_proj.weight"].T for p in "qkv")
        q, k, v = (a.reshape(len(h), -1, width) for a in (q, k, v))
        if c["no_rope_layers"][layer]:  # 1 where the layer rotates
            angles = np.multiply.outer(positions.astype(angle_dtype), self._frequencies().astype(angle_dtype))
            q, k = (_rotate(a, angles.astype(np.float64)) for a in (q, k))
            if c["use_qk_norm"]:
                q, k = (_unit_rms(a, c["rms_norm_eps"]) for a in (q, k))
        elif c["attn_temperature_tuning"]:
            q = q * (np.log1p(np.floor((positions + 1) / c["floor_scale"])) * c["attn_scale"] + 1)[:, None, None]
        seen = positions[None, :] <= positions[:, None]
        if c["attention_chunk_size"] and c["no_rope_layers"][layer]:  # layer_types follows no_rope_layers
            chunk = positions // c["attention_chunk_size"]
            seen &= chunk[None, :] == chunk[:, None]
        k, v = (np.repeat(a, heads // kv_heads, axis=1) for a in (k, v))
        scores = np.where(seen, np.einsum("qhd,khd->hqk", q, k) / np.sqrt(width), -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", shares, v).reshape(len(h), -1) @ self.weights[f"{name}.o_proj.weight"].T

    def _frequencies(self) -> Array:
        """float64 [head_dim / 2]; with `llama3` long wavelengths are stretched (this model's bands meet)."""
        rope, width = self.config["rope_parameters"], self.config["head_dim"]
        f = rope["rope_theta"] ** (-np.arange(0, width, 2) / width)
        if rope["rope_type"] == "default":
            return f
        assert rope["low_freq_factor"] == rope["high_freq_factor"]
        long = 2 * np.pi / f > rope["original_max_position_embeddings"] / rope["low_freq_factor"]
        return np.where(long, f / rope["factor"], f)

    def _moe(self, name: str, h: Array) -> Array:
        w = self.weights
        y = self._mlp(f"{name}.shared_expert", h)
        router = h @ w[f"{name}.router.weight"].T
        for token, scores in enumerate(router):
            for expert in np.argsort(-scores)[: self.config["num_experts_per_tok"]]:
                x = h[token] / (1 + np.exp(-scores[expert]))
                gate, up = np.split(x @ w[f"{name}.experts.gate_up_proj"][expert], 2)
                y[token] += gate / (1 + np.exp(-gate)) * up @ w[f"{name}.experts.down_proj"][expert]
        return y

    def _mlp(self, name: str, h: Array) -> Array:
        gate, up = (h @ self.weights[f"{name}.{p}_proj.weight"].T for p in ("gate", "up"))
        return (gate / (1 + np.exp(-gate)) * up) @ self.weights[f"{name}.down_proj.weight"].T

    def _norm(self, x: Array, name: str) -> Array:
        return _unit_rms(x, self.config["rms_norm_eps"]) * self.weights[f"{name}.weight"]


def _unit_rms(x: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def _rotate(x: Array, angles: Array) -> Array:
    """x [tokens, heads, width], adjacent pairs turned by angles [tokens, width / 2]."""
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    even, odd = x[..., ::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)
