"""Which mechanisms of Llama 4 some tokens go through. What they do not go through, their comparison says nothing of."""

from __future__ import annotations

from l4export.engine.described import Described
from l4export.model.config import ModelConfig
from l4export.reports.exercised import Exercised

__all__ = ["boundary_marks", "chunk_boundaries", "chunks_are_in_reach", "exercised_by_images", "exercised_by_length"]


def chunk_boundaries(config: ModelConfig, tokens: int) -> int:
    """Count the chunk boundaries between the first token and the last. Without any, chunking is not tested."""
    size = config.attention_chunk_size
    return (tokens - 1) // size if size and any(config.chunked_layers) else 0


def chunks_are_in_reach(manifest: Described) -> bool:
    """Whether the longest sequence of an engine crosses a chunk boundary."""
    return chunk_boundaries(manifest.model, manifest.max_context) > 0


def exercised_by_length(manifest: Described, tokens: int) -> tuple[Exercised, Exercised]:
    """What a sequence of `tokens` tokens goes through: chunk boundaries, and temperatures beyond the floor.

    In layers without RoPE queries are multiplied by 1 + attn_scale log(floor((position + 1) / floor_scale) + 1). Until
    position + 1 reaches floor_scale, this is 1.
    """
    config, most = manifest.model, manifest.max_context
    size, floor = config.attention_chunk_size, config.floor_scale
    crossed = chunk_boundaries(config, tokens)
    if not size or not any(config.chunked_layers):
        chunks = Exercised("chunk boundaries", "not applicable", "every layer attends to all tokens")
    elif not chunks_are_in_reach(manifest):
        chunks = Exercised("chunk boundaries", "not applicable", f"the context of {most} tokens is within one chunk")
    else:
        within = f"{tokens} tokens are within one chunk of {size}"
        chunks = Exercised.counted("chunk boundaries", crossed, f"{crossed} crossed", within)
    name, tuned = "temperature beyond its floor", config.attn_temperature_tuning and not all(config.rope_layers)
    if not tuned:
        return chunks, Exercised(name, "not applicable", "no layer has a temperature")
    if most < floor:
        return chunks, Exercised(name, "not applicable", f"the context of {most} tokens is below it")
    beyond = max(0, int(tokens - floor + 1))
    how = f"{beyond} position{'s' if beyond > 1 else ''}"
    return chunks, Exercised.counted(name, beyond, how, f"it begins at token {floor:g}, and there are {tokens}")


def exercised_by_images(manifest: Described, images: int) -> Exercised:
    """Whether images were seen, and how many."""
    if manifest.vision is None:
        return Exercised("images", "not applicable", "there is no vision tower")
    return Exercised.counted("images", images, f"{images} shown", "none was shown")


def boundary_marks(chunk_size: int | None, positions: int) -> tuple[tuple[float, ...], str]:
    """Where chunks begin on an axis of so many positions, and what such a mark is called; nothing without chunks."""
    if not chunk_size or positions <= chunk_size:
        return (), ""
    return tuple(map(float, range(chunk_size, positions, chunk_size))), f"chunk boundaries, every {chunk_size} tokens"
