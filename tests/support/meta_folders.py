"""Folders of Meta's own layout, written from a checkpoint in Hugging Face layout as Meta's program would have them.

This is the inverse of what l4export reads, and shares nothing with it: every tensor is cut for a number of
model-parallel ranks and saved with torch.save.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

State = dict[str, Any]


def write_meta_folder(checkpoint: Path, folder: Path, ranks: int, plain_names: bool = False, scales: str = "") -> Path:
    """Write `checkpoint` as Meta's folder of `ranks` shards.

    `plain_names` has the names of Meta's modules instead of those of its fused training modules. `scales`, "fp8" or
    "int4", quantises experts: all of INT4, and those between the first and the last layer of FP8.
    """
    folder.mkdir()
    config = json.loads((checkpoint / "config.json").read_text())
    weights = load_file(checkpoint / "model.safetensors")
    text = config.get("text_config", config)
    (folder / "params.json").write_text(json.dumps(meta_params(config)))
    named = {name.removeprefix("language_model."): tensor for name, tensor in weights.items()}
    for rank in range(ranks):
        state: State = {"rope.freqs": torch.zeros(4)}
        codes: State = {}
        for name, tensor in named.items():
            if name.startswith(("vision_", "multi_modal_")):
                state |= _vision(name, tensor, rank, ranks)
            elif name in _TOP:
                axis, key = _TOP[name]
                state[key] = tensor if axis is None else tensor.chunk(ranks, axis)[rank].clone()
        for layer in range(text["num_hidden_layers"]):
            own = {name: tensor for name, tensor in _of_layer(named, layer).items()}
            state |= _layer(own, layer, rank, ranks, plain_names)
        if scales:
            _quantise(state, codes, scales, text["num_hidden_layers"], text["num_local_experts"])
            torch.save(codes, folder / f"{scales}_scales_{rank}.pt")
        torch.save(state, folder / f"consolidated.{rank:02d}.pth")
    return folder


def meta_params(config: Mapping[str, Any]) -> dict[str, Any]:
    """The params.json of a tiny sample: its widths follow from Meta's formulas with these factors."""
    text = config.get("text_config", config)
    rope, moe = text["rope_parameters"], text.get("moe_layers")
    params = {
        "dim": text["hidden_size"],
        "n_layers": text["num_hidden_layers"],
        "n_heads": text["num_attention_heads"],
        "n_kv_heads": text["num_key_value_heads"],
        "vocab_size": text["vocab_size"],
        "multiple_of": 16,
        "ffn_dim_multiplier": 0.5,
        "ffn_exp": 6 * text["intermediate_size"] / text["hidden_size"],
        "norm_eps": text["rms_norm_eps"],
        "rope_theta": rope["rope_theta"],
        "use_scaled_rope": rope["rope_type"] == "llama3",
        "nope_layer_interval": None if all(text["no_rope_layers"]) else 4,
        "attention_chunk_size": text["attention_chunk_size"],
        "use_qk_norm": text["use_qk_norm"],
        "attn_temperature_tuning": True,
        "floor_scale": text["floor_scale"],
        "attn_scale": text["attn_scale"],
    }
    if moe:
        step = moe[0] + 1
        params["moe_args"] = {"num_experts": text["num_local_experts"], "interleave_moe_layer_step": step, "top_k": 1}
    if vision := config.get("vision_config"):
        square = {name: {"height": vision[name], "width": vision[name]} for name in ("image_size", "patch_size")}
        params["vision_args"] = {
            **square,
            "dim": vision["hidden_size"],
            "n_layers": vision["num_hidden_layers"],
            "n_heads": vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
            "output_dim": vision["vision_output_dim"],
            "pixel_shuffle_ratio": vision["pixel_shuffle_ratio"],
        }
    return params


_TOP = {
    "model.embed_tokens.weight": (0, "tok_embeddings.weight"),
    "model.norm.weight": (None, "norm.weight"),
    "lm_head.weight": (0, "output.weight"),
}


def _of_layer(named: State, layer: int) -> State:
    prefix = f"model.layers.{layer}."
    return {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)}


def _layer(own: State, layer: int, rank: int, ranks: int, plain_names: bool) -> State:
    """What a rank has of a layer."""

    def rows(name: str) -> torch.Tensor:
        return own[name].chunk(ranks, 0)[rank]

    def columns(name: str) -> torch.Tensor:
        return own[name].chunk(ranks, 1)[rank].contiguous()

    qkv = [rows(f"self_attn.{name}_proj.weight") for name in "qkv"]
    found: State = {"attention.wo.weight": columns("self_attn.o_proj.weight")}
    norms = own["input_layernorm.weight"], own["post_attention_layernorm.weight"]
    moe = "feed_forward.router.weight" in own
    if plain_names:
        found |= {f"attention.w{name}.weight": part.clone() for name, part in zip("qkv", qkv, strict=True)}
        found |= {"attention_norm.weight": norms[0], "ffn_norm.weight": norms[1]}
    else:
        found |= {"attention.wqkv.weight": torch.cat(qkv), "attention.wqkv.layer_norm_weight": norms[0]}
        found["attention.wqkv._extra_state"] = io.BytesIO(b"state \xff")
        found["feed_forward.norm.weight" if moe else "feed_forward.mlp.layer_norm_weight"] = norms[1]
    module = "feed_forward.shared_expert" if moe else "feed_forward"
    gate, up = rows(f"{module}.gate_proj.weight"), rows(f"{module}.up_proj.weight")
    down = columns(f"{module}.down_proj.weight")
    if not moe:
        if plain_names:
            found |= {f"feed_forward.w{i}.weight": part.clone() for i, part in ((1, gate), (2, down), (3, up))}
        else:
            found |= {"feed_forward.mlp.fc1_weight": torch.cat([gate, up]), "feed_forward.mlp.fc2_weight": down}
    else:
        gates, ups = (half.chunk(ranks, 2)[rank] for half in own["feed_forward.experts.gate_up_proj"].chunk(2, 2))
        downs = own["feed_forward.experts.down_proj"].chunk(ranks, 1)[rank]
        found["feed_forward.router_DE"] = own["feed_forward.router.weight"].t()  # saved as the view that it is
        if plain_names:
            found |= {f"feed_forward.experts.w{i}": part.clone() for i, part in ((1, gates), (2, downs), (3, ups))}
            found |= {f"{module}.w{i}.weight": part.clone() for i, part in ((1, gate), (2, down), (3, up))}
        else:
            for key, part in (("moe_w_in_eD_F", gates), ("moe_w_swiglu_eD_F", ups), ("moe_w_out_eF_D", downs)):
                found[f"feed_forward.experts.{key}"] = part.reshape(-1, part.shape[-1])
            for key, part in (("w_in_shared_FD", gate), ("w_swiglu_FD", up), ("w_out_shared_DF", down)):
                found[f"feed_forward.{key}.weight"] = part.clone()
            found["feed_forward.running_gate_stats_3E"] = torch.zeros(3, 4)
    return {f"layers.{layer}.{name}": tensor for name, tensor in found.items()}


_TOWER: list[tuple[str, str, int | None]] = [
    (r"vision_model\.patch_embedding\.linear\.weight", "vision_encoder.conv1._linear.weight", 0),
    (r"vision_model\.(class_embedding|positional_embedding_vlm)", r"vision_encoder.\1", None),
    (r"vision_model\.layernorm_(pre|post)\.(weight|bias)", r"vision_encoder.ln_\1.\2", None),
    (r"L\.input_layernorm\.(weight|bias)", r"B.ln_1.\2", None),
    (r"L\.post_attention_layernorm\.(weight|bias)", r"B.ln_2.\2", None),
    (r"L\.self_attn\.([qkv])_proj\.(weight|bias)", r"B.attn.w\2.\3", 0),
    (r"L\.self_attn\.o_proj\.weight", "B.attn.wo.weight", 1),
    (r"L\.self_attn\.o_proj\.bias", "B.attn.wo.bias", None),
    (r"L\.mlp\.fc1\.(weight|bias)", r"B.mlp.c_fc.\2", 0),
    (r"L\.mlp\.fc2\.weight", "B.mlp.c_proj.weight", 1),
    (r"L\.mlp\.fc2\.bias", "B.mlp.c_proj.bias", None),
    (r"vision_model\.vision_adapter\.mlp\.fc1\.weight", "vision_adapter.mlp.c_fc.weight", 0),
    (r"vision_model\.vision_adapter\.mlp\.fc2\.weight", "vision_adapter.mlp.c_proj.weight", 1),
]


def _vision(name: str, tensor: torch.Tensor, rank: int, ranks: int) -> State:
    """What a rank has of a tensor of the tower."""
    if name == "multi_modal_projector.linear_1.weight":
        return {"vision_projection.weight": tensor.chunk(ranks, 0)[rank].clone()}
    for pattern, key, axis in _TOWER:
        if match := re.fullmatch(pattern.replace("L", r"vision_model\.model\.layers\.(\d+)"), name):
            part = tensor if axis is None else tensor.chunk(ranks, axis)[rank].contiguous().clone()
            own = match.expand(key.replace("B", r"vision_encoder.transformer.resblocks.\1"))
            return {f"vision_embeddings.{own}": part}
    raise AssertionError(name)


def _quantise(state: State, codes: State, kind: str, layers: int, experts: int) -> None:
    """Replace experts by codes, as Meta's quantize.py does; the scales go into `codes`."""
    for name in [name for name in state if re.search(r"moe_w_|_FD\.|_DF\.", name)]:
        layer, shared = int(name.split(".")[1]), "moe_w_" not in name
        if kind == "fp8" and (shared or layer in (0, layers - 1)):
            continue
        weight = state[name].float()
        if shared:
            packed, scale = _int4(weight)
            state[name] = torch.nn.Parameter(packed.view(torch.float8_e4m3fn), requires_grad=False)
            codes[name] = scale
            continue
        turned = weight.view(experts, -1, weight.shape[-1]).transpose(1, 2).contiguous()  # [E, N, K]
        if kind == "fp8":
            scale = turned.abs().amax(-1) / 448
            packed = (turned / scale[..., None]).to(torch.float8_e4m3fn)
            codes[_loader_name(name)] = scale
        else:
            pairs = [_int4(matrix) for matrix in turned]
            packed = torch.stack([pair[0] for pair in pairs]).view(torch.float8_e4m3fn)
            codes[name] = torch.stack([pair[1] for pair in pairs])
        flat = packed.view(torch.int8).transpose(1, 2).reshape(-1, weight.shape[-1]).contiguous()
        state[name] = torch.nn.Parameter(flat.view(torch.float8_e4m3fn), requires_grad=False)


def _loader_name(name: str) -> str:
    words = {"moe_w_in_eD_F": "w1", "moe_w_swiglu_eD_F": "w3", "moe_w_out_eF_D": "w2"}
    prefix, _, last = name.rpartition(".")
    return f"{prefix}.{words[last]}"


def _int4(matrix: torch.Tensor, group: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, K] -> bytes [N, K/2] and scales [K/group, N]."""
    grouped = matrix.reshape(-1, group)
    scale = grouped.abs().amax(1, keepdim=True).clamp(min=1e-6) / 8
    whole = (grouped / scale).round().clamp(-8, 7).to(torch.int8).reshape(matrix.shape)
    packed = (whole[:, ::2] & 0xF) | (whole[:, 1::2] << 4)
    return packed.contiguous(), scale.view(matrix.shape[0], -1).t().contiguous()
