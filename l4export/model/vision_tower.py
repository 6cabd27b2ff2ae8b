"""The reference graph of the vision tower: tiles of images to rows for the decoder.

It follows transformers' `Llama4VisionModel` and its projector operation for operation and is executable as it stands.
"""

from __future__ import annotations

import onnx_ir as ir

from l4export.graph.contents import LayerValue, note
from l4export.graph.dialect import DOMAIN
from l4export.model.tensors import vision_tensors
from l4export.model.vision_config import VisionConfig
from l4export.model.weighted_graph import WeightedGraph, WeightSource, graph_input, typed

__all__ = ["build_vision_tower"]

_EPSILON = 1e-5
"""Of every layer norm: transformers has PyTorch's default, and does not read `norm_eps`."""

_TOWER = "vision_model"


def build_vision_tower(
    config: VisionConfig, width: int, weights: WeightSource, dtype: ir.DataType, features_dtype: ir.DataType
) -> ir.Model:
    """The tower, its adapter and its projector as an `ir.Model` that computes in `dtype`.

    Input: `pixel_values` float32 [tiles, 3, T, T]. Output: `image_features` [rows, width] in `features_dtype`, what a
    decoder of `width` channels takes for the image tokens of these tiles, in order.

    Raises what `weights` raises for a tensor that is missing or has another shape.
    """
    return _Tower(config, width, weights, dtype).build(features_dtype)


class _Tower(WeightedGraph):
    def __init__(self, config: VisionConfig, width: int, weights: WeightSource, dtype: ir.DataType) -> None:
        super().__init__(vision_tensors(config, width), weights, dtype)
        self.config, self.width = config, width

    def build(self, features_dtype: ir.DataType) -> ir.Model:
        config, b = self.config, self.b
        side = config.image_size
        pixel_values = graph_input("pixel_values", ir.DataType.FLOAT, ["tiles", 3, side, side])
        x = self.embedding(self.cast(pixel_values, ir.DataType.FLOAT, self.dtype, "pixel_values"))
        tables = config.rotation()
        angles = [
            b.initializer(ir.tensor(table.astype(self.dtype.numpy())), f"vision_rotary.{name}")
            for name, table in zip(("cos", "sin"), tables, strict=True)
        ]
        cos, sin = b.ops("TileAngles", x, *angles, outputs=2, domain=DOMAIN, name="rotary")
        for layer in range(config.num_hidden_layers):
            with b.scope(f"layers.{layer}"):
                x = self.layer(layer, x, cos, sin)
        x = self.norm(x, f"{_TOWER}.layernorm_post", "layernorm_post")
        features = self.cast(self.projected(x), self.dtype, features_dtype, "image_features")
        features.name = "image_features"
        return self.model([pixel_values], [typed(features, features_dtype, ["rows", self.width])], "llama4_vision")

    def embedding(self, pixels: ir.Value) -> ir.Value:
        """Patches [t, N, D] with the class token behind them, each with its position, normalised: [t, N + 1, D]."""
        config, b = self.config, self.b
        x = b.op("Patches", pixels, domain=DOMAIN, name="patches", grid=config.grid, patch_size=config.patch_size)
        x = self.linear(x, f"{_TOWER}.patch_embedding.linear.weight", "patch_embedding")
        x = b.op("AppendClassToken", x, self.weight(f"{_TOWER}.class_embedding"), domain=DOMAIN, name="class_token")
        x = b.op("Add", x, self.weight(f"{_TOWER}.positional_embedding_vlm"), name="positions")
        return self.noted(self.norm(x, f"{_TOWER}.layernorm_pre", "layernorm_pre"), LayerValue("embedded", 0))

    def layer(self, layer: int, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
        """x [t, N + 1, D] -> x + attention + feed-forward; nothing is masked, and tiles do not see each other."""
        b, config, prefix = self.b, self.config, f"{_TOWER}.model.layers.{layer}"
        h = self.norm(x, f"{prefix}.input_layernorm", "input_layernorm")
        with b.scope("attn"):
            q, k, v = (self.biased(h, f"{prefix}.self_attn.{name}", name) for name in ("q_proj", "k_proj", "v_proj"))
            heads = config.num_attention_heads
            q, k = (
                b.op("RotaryEmbedding", value, cos, sin, name=name, interleaved=1, num_heads=heads)
                for value, name in ((q, "q_rotary"), (k, "k_rotary"))
            )
            y = b.op("TileAttention", q, k, v, domain=DOMAIN, name="Attention", num_heads=heads)
            y = self.biased(y, f"{prefix}.self_attn.o_proj", "o_proj")
        x = b.op("Add", x, y, name="attn_residual")
        h = self.norm(x, f"{prefix}.post_attention_layernorm", "post_attention_layernorm")
        with b.scope("mlp"):
            y = b.op("Gelu", self.biased(h, f"{prefix}.mlp.fc1", "fc1"), name="act")
            y = self.biased(y, f"{prefix}.mlp.fc2", "fc2")
        return self.noted(b.op("Add", x, y, name="mlp_residual"), LayerValue("residual", layer))

    def projected(self, x: ir.Value) -> ir.Value:
        """Blocks of patches as rows, through the adapter and the projector: [t, N + 1, D] -> [rows, width]."""
        b, config = self.b, self.config
        bounds = (b.constant([value], name) for name, value in (("first", 0), ("patches", config.grid**2), ("axis", 1)))
        x = b.op("Slice", x, *bounds, name="without_class_token")
        x = b.op("PixelShuffle", x, domain=DOMAIN, name="pixel_shuffle", grid=config.grid, block=config.block)
        self.noted(x, LayerValue("shuffled", config.num_hidden_layers - 1))
        with b.scope("adapter"):
            for name in ("fc1", "fc2"):
                x = b.op("Gelu", self.linear(x, f"{_TOWER}.vision_adapter.mlp.{name}.weight", name), name=f"{name}/act")
        self.noted(x, LayerValue("adapted", config.num_hidden_layers - 1))
        x = self.linear(x, "multi_modal_projector.linear_1.weight", "projector")
        return b.op("Reshape", x, b.constant([-1, self.width], "rows_shape"), name="rows")

    def noted(self, x: ir.Value, held: LayerValue) -> ir.Value:
        """x, with a note of what it holds, and the shape of that."""
        config = self.config
        rows, width = {
            "shuffled": (config.rows_per_tile, config.hidden_size * config.block**2),
            "adapted": (config.rows_per_tile, config.projector_size),
        }.get(held.role, (config.grid**2 + 1, config.hidden_size))
        return note(typed(x, self.dtype, ["tiles", rows, width]), held)

    def biased(self, x: ir.Value, module: str, name: str) -> ir.Value:
        """x W' + bias."""
        product = self.linear(x, f"{module}.weight", name)
        return self.b.op("Add", product, self.weight(f"{module}.bias"), name=f"{name}/Add")

    def norm(self, x: ir.Value, module: str, name: str) -> ir.Value:
        """Layer norm over the hidden width, with weight and bias."""
        weights = self.weight(f"{module}.weight"), self.weight(f"{module}.bias")
        return self.b.op("LayerNormalization", x, *weights, name=name, axis=-1, epsilon=_EPSILON)

    def cast(self, x: ir.Value, old: ir.DataType, new: ir.DataType, name: str) -> ir.Value:
        """x in another dtype, if it is another."""
        return x if old == new else self.b.op("Cast", x, to=int(new), name=f"{name}/Cast")
