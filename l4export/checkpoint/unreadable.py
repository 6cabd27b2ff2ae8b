"""Messages for what cannot be read as a checkpoint: what a directory or a tensor is, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from l4export.model.weight_names import layer_of

__all__ = [
    "MAKE_TOKENIZER",
    "absent_directory",
    "absent_weights",
    "extra_tensor",
    "is_cache_scale",
    "is_quantised",
    "missing_tensor",
    "way_out",
]

_PICKLES = (".bin", ".pth", ".pt", ".ckpt")

_QUANTISED = re.compile(
    r"\.(weight_(packed|scale(_inv|_2)?|shape|zero_point|g_idx|global_scale)|q?weight\.(absmax|quant_|nested_).*|SCB"
    r"|(input|output|act)_(global_)?scale|qweight|qzeros|scales|g_idx|(gate_up|down)_proj_(scale(_inv)?|packed|blocks))$"
)
"""Parts of a quantised weight, by the names that common tools give them."""

_CACHE_SCALE = re.compile(r"\.self_attn\.([qkv]_proj\.([qkv]_scale|output_scale)|(attn\.)?(q|k|v|kv|prob)_scale)$")

_FOREIGN = {
    r"\.weight\.(absmax|quant_map|quant_state\..*|nested_.*)|\.SCB": (
        "bitsandbytes", "load it with transformers, call dequantize() and save_pretrained(), and build the result"
    ),
    r"\.(qweight|qzeros)": ("GPTQ or AWQ", "use the float checkpoint, or one in compressed-tensors' format"),
    r"\.scales|\.biases": ("MLX", "convert it with mlx_lm.convert --dequantize, or use the float checkpoint"),
    r"\.weight_scale_inv|_scale_inv": ("the method fp8", "use the float checkpoint"),
}  # fmt: skip
"""Names of tensors (their ends) that tell a tool which is not read -> the tool, and what to do instead."""

MAKE_TOKENIZER = "as transformers writes with AutoTokenizer.from_pretrained(CHECKPOINT).save_pretrained(CHECKPOINT)"
"""How to get a tokenizer.json."""

_DO_NOT_MATCH = "config.json and the weights do not match"


def is_quantised(name: str) -> bool:
    """Whether a tensor's name is that of a part of a quantised weight."""
    return bool(_QUANTISED.search(name)) and not is_cache_scale(name)


def way_out(names: Iterable[str], directory: Path, config: object) -> str | None:
    """Which tool quantised a checkpoint with these tensors, if its format is not read, and what to do about it.

    `config` is the `quantization_config` of its config.json.
    """
    modelopt = directory / "hf_quant_config.json"
    if modelopt.exists() or (isinstance(config, Mapping) and config.get("quant_method") == "modelopt"):
        told = modelopt.name if modelopt.exists() else "quantization_config"
        return (
            f"weights are quantised by NVIDIA's ModelOpt ({told}), which is not read; use the float checkpoint, or one "
            "in compressed-tensors' format"
        )
    for pattern, (tool, instead) in _FOREIGN.items():
        ends = re.compile(rf"(?:{pattern})$")
        if name := _first(names, ends.search):
            return f"weights are quantised by {tool} ({name!r}), which is not read; {instead}"
    return None


def is_cache_scale(name: str) -> bool:
    """Whether a tensor is a scale of queries, keys or values, as is left behind by calibrating an FP8 cache."""
    return bool(_CACHE_SCALE.search(name))


def absent_directory(path: Path) -> str:
    """Why a path that is no directory is no checkpoint."""
    if path.exists():
        return f"{path}: not a directory; give the one that holds config.json and the weights"
    hub = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", str(path)) and not path.parent.exists()
    if hub:
        return (
            f"{path}: no such file or directory; a model of the Hugging Face hub must be downloaded first: "
            f"hf download {path} --local-dir {path.name}"
        )
    return f"{path}: no such file or directory; give a checkpoint in Hugging Face layout"


def absent_weights(path: Path, lacks: str) -> str:
    """Why a directory without one of the files of a checkpoint (`lacks`: which) is none."""
    names = sorted(file.name for file in path.iterdir())
    if "adapter_config.json" in names:
        return (
            f"{path}: holds an adapter (adapter_config.json); build from its base model with --adapter {path}, "
            "or remove the file if the weights have it merged in"
        )
    if "snapshots" in names:
        return f"{path}: is a cache of the Hugging Face hub; give the directory in {path / 'snapshots'}"
    if "params.json" in names or any(name.startswith("consolidated.") for name in names):
        found = next(name for name in names if name == "params.json" or name.startswith("consolidated."))
        return (
            f"{path}: {lacks} is missing; {found!r} is of Meta's own layout, of which params.json with "
            "consolidated.00.pth and so on is read, beside no config.json"
        )
    for name in names:
        if name.endswith(_PICKLES):
            return (
                f"{path}: {name!r} is a pickle file, which is never read (it can run code); "
                "convert the checkpoint to safetensors"
            )
        if name.endswith(".gguf"):
            return f"{path}: {name!r} is a GGUF file, which is not read; use the checkpoint in Hugging Face layout"
    return f"{path}: {lacks} is missing; expected a checkpoint in Hugging Face layout"


def missing_tensor(name: str, names: Iterable[str]) -> str:
    """Why a tensor is not among a checkpoint's, as a sentence that follows its name."""
    names = list(names)
    module = name.removesuffix(".weight")
    if any(".lora_" in other or ".base_layer." in other for other in names):
        return "is missing: an adapter was saved unmerged; merge it (peft: merge_and_unload, save_pretrained)"
    if other := _first(names, lambda other: other.startswith(module) and is_quantised(other)):
        return f"is missing: the weights are quantised ({other!r}) in a way that is not read; use the float checkpoint"
    if ".experts." in name and (other := _first(names, lambda other: re.search(r"\.experts\.\d+\.", other))):
        if is_quantised(other):
            return (
                f"is missing: experts are stored quantised and one by one ({other!r}), and not all of them are there; "
                "download the checkpoint again"
            )
        return f"is missing: experts are stored one by one ({other!r}), and not all of them are there"
    tail = re.sub(r"^(language_model\.)?(model\.)?", ".", name)
    if other := _first(names, lambda other: _unwrapped(other).endswith(tail) and not other.startswith("vision_")):
        return f"is missing: it is called {other!r}; rename the tensors to transformers' names"
    if "tok_embeddings.weight" in names or "layers.0.attention.wq.weight" in names:
        return "is missing: the names are those of Meta; convert with transformers' convert_llama4_weights_to_hf.py"
    return f"is missing; {_DO_NOT_MATCH}"


def extra_tensor(name: str, layers: int) -> str:
    """Why a tensor has no place in a model of `layers` layers, as a sentence that follows its name."""
    layer = layer_of(name)
    if layer is not None and layer >= layers:
        return (
            f"is of a layer that config.json does not count (num_hidden_layers is {layers}); "
            f"to build these layers alone, give --layers 0:{layers}"
        )
    if is_quantised(name):
        return "is part of a quantised weight, and no codes that belong to it are there; use the float checkpoint"
    if name.endswith(".bias"):
        return "is a bias; projections with biases are not supported"
    return f"is no part of the model that config.json describes; {_DO_NOT_MATCH}"


def _unwrapped(name: str) -> str:
    """A name without what torch.compile and FSDP put into it."""
    return re.sub(r"_orig_mod\.|_fsdp_wrapped_module\.", "", name)


def _first(names: Iterable[str], is_it: Callable[[str], object]) -> str | None:
    return next((name for name in names if is_it(name)), None)
