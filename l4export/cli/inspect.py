"""`l4export inspect`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from l4export.engine.manifest import Manifest
    from l4export.model.config import ModelConfig

__all__ = ["command"]


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(path: Path, as_json: bool) -> None:
    """Show what the checkpoint or engine at PATH is: architecture, parameters, dtypes, bytes, passes."""
    from l4export.engine.manifest import MANIFEST

    facts = _engine(path) if (path / MANIFEST).is_file() else _checkpoint(path)
    if as_json:
        click.echo(json.dumps(facts))
        return
    _show(facts)


def _checkpoint(path: Path) -> dict[str, Any]:
    from l4export.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    text = [t for name, t in checkpoint.tensors.items() if _is_text(name, checkpoint.prefix)]
    dtypes: Counter[str] = Counter()
    for tensor in text:
        dtypes[tensor.entry.dtype] += tensor.nbytes
    other = sum(tensor.nbytes for tensor in checkpoint.tensors.values()) - sum(dtypes.values())
    return {
        "kind": "checkpoint",
        "path": str(path),
        **_model(checkpoint.config),
        "tensors": len(text),
        "files": {file.path.name: file.size for file in checkpoint.files},
        "bytes": sum(dtypes.values()),
        "bytes_by_dtype": dict(dtypes),
        "bytes_of_other_modalities": other,
    }


def _is_text(name: str, prefix: str) -> bool:
    return name.startswith((f"{prefix}model.", f"{prefix}lm_head."))


def _engine(path: Path) -> dict[str, Any]:
    from l4export.engine.manifest import load_manifest
    from l4export.inspection.weight_bytes import bits_per_weight, load_graph

    manifest = load_manifest(path)
    return {
        "kind": "engine",
        "path": str(path),
        "generator": manifest.generator,
        "target": manifest.target,
        **_model(manifest.model),
        "precision": manifest.precision,
        "bits_per_weight": round(bits_per_weight(load_graph(path), manifest.model), 4),
        "max_context": manifest.max_context,
        **_kv_cache(manifest),
        "engines": {part.engine: f"layers {part.layers[0]}:{part.layers[1]}" for part in manifest.parts},
        "passes": list(manifest.passes),
        "files": {name: record.bytes for name, record in manifest.files.items()},
        "bytes": sum(record.bytes for record in manifest.files.values()),
    }


def _kv_cache(manifest: Manifest) -> dict[str, Any]:
    """Slots by kind of layer (null: as many as there are tokens); bytes of one row that has `max_context` tokens, and
    of one more token in the layers that keep everything."""
    from l4export.engine.kv_cache import kv_bytes, layer_kv_bytes

    config, layers, dtype = manifest.model, manifest.kv_layers, manifest.precision["kv_cache"]
    growing = [layer for layer in layers if manifest.kv_layout != "chunked" or layer.kind == "full"]
    return {
        "kv_layout": manifest.kv_layout,
        "kv_slots": {layer.kind: layer.capacity for layer in layers},
        "kv_bytes_per_token": len(growing) * layer_kv_bytes(config, 1, dtype),
        "kv_bytes": kv_bytes(config, manifest.kv_layout, dtype, manifest.max_context),
    }


def _model(config: ModelConfig) -> dict[str, Any]:
    from l4export.model.tensors import parameter_count

    count = parameter_count(config)
    return {
        "parameters": count.total,
        "active_parameters": count.active,
        "layers": config.num_hidden_layers,
        "moe_layers": len(config.moe_layers),
        "experts": config.num_local_experts,
        "experts_per_token": config.num_experts_per_tok if config.moe_layers else 0,
        "hidden_size": config.hidden_size,
        "heads": [config.num_attention_heads, config.num_key_value_heads, config.head_dim],
        "vocab_size": config.vocab_size,
        "rope_layers": sum(config.rope_layers),
        "rope_scaling": None if config.rope_scaling is None else config.rope_scaling.factor,
        "qk_norm": config.use_qk_norm,
        "chunked_layers": sum(config.chunked_layers),
        "attention_chunk_size": config.attention_chunk_size,
        "temperature_tuning": config.attn_temperature_tuning and not all(config.rope_layers),
        "tied_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
    }


def _show(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value != {}:  # only TensorRT compiles engines
            table.add_row(name.replace("_", " "), _text(name, value))
    Console().print(table)


def _text(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}  {_text(name, item)}" for key, item in value.items())
    if isinstance(value, list):
        separator = " x " if name == "heads" else ", "
        return separator.join(str(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else str(value)
