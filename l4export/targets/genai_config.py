"""`genai_config.json`, with which onnxruntime-genai opens an engine directory as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable

from l4export.targets.genai_graphs import GENAI_DECODER, GENAI_EMBEDDING, write_genai_graphs
from l4export.targets.target import UnfinishedEngine

__all__ = ["GENAI_FILES", "write_genai_config"]

GENAI_CONFIG = "genai_config.json"

GENAI_FILES = (GENAI_CONFIG, GENAI_EMBEDDING, GENAI_DECODER)
"""What an engine may have for onnxruntime-genai; the graphs where it sees images."""

GENAI_LAYOUTS = ("concat", "static")
"""KV layouts that onnxruntime-genai runs correctly. It cuts a prompt at multiples of its chunk size counted from where
the prompt starts, so a second prompt would run over the end of a chunk, which layout `chunked` refuses."""


def write_genai_config(engine: UnfinishedEngine) -> list[str]:
    """Write genai_config.json where onnxruntime-genai runs the engine correctly; return the names of what was written.

    Of an engine that sees images these are its graphs for onnxruntime-genai, too (`l4export.targets.genai_graphs`).

    A model without a stop token gets none: onnxruntime-genai 0.18 reads an empty list as token 0 and takes only ids of
    the vocabulary, so it would end a text where the model does not. `engine.on_notice` is called with a line about it.
    """
    if engine.kv_layout not in GENAI_LAYOUTS:
        return []
    if not _in_vocabulary(engine, engine.config.eos_token_ids):
        engine.on_notice(
            f"no {GENAI_CONFIG}: the model names no end-of-sequence token of its vocabulary, and onnxruntime-genai "
            "would stop at token 0 instead; set eos_token_id in config.json if it has one"
        )
        return []
    (engine.directory / GENAI_CONFIG).write_text(_genai_config(engine), encoding="utf-8")
    return [GENAI_CONFIG, *(write_genai_graphs(engine) if engine.tower else [])]


def _genai_config(engine: UnfinishedEngine) -> str:
    """Return the text of the file for an engine's decoder, and for what sees its images.

    onnxruntime-genai computes nothing of the model itself: "llama" only selects its generic decoder loop, and "gemma3"
    that of a tower, an embedding and a decoder. It has "phi3v" for these three, too, but cannot go back with it. With
    layout `static` it binds one buffer to past and present; it cuts prompts into pieces of `prefill_tokens`. With
    FP8 activations ONNX Runtime is kept from fusing products, as in `l4export.runtimes.engine`.
    """
    config, sees = engine.config, engine.tower is not None
    reads = "inputs_embeds" if sees else "input_ids"
    names = {
        reads: reads,
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    entries = {"session.disable_quant_qdq": "1"} if engine.activations else {}
    stops = _in_vocabulary(engine, config.eos_token_ids)
    model = {
        "type": "gemma3" if sees else "llama",
        "bos_token_id": next(iter(_in_vocabulary(engine, [config.bos_token_id])), 0),
        "eos_token_id": stops,
        "pad_token_id": _in_vocabulary(engine, [config.pad_token_id, *stops])[0],
        "vocab_size": config.vocab_size,
        "context_length": engine.max_context,
        "decoder": {
            "session_options": {"log_id": "l4export", "provider_options": [], **entries},
            "filename": GENAI_DECODER if sees else engine.graph,
            "head_size": config.head_dim,
            "hidden_size": config.hidden_size,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "num_hidden_layers": config.num_hidden_layers,
            "inputs": names,
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
        **(_before_the_decoder(engine.tower) if engine.tower else {}),
    }
    search = {
        "max_length": engine.max_context,
        "do_sample": False,
        "past_present_share_buffer": engine.kv_layout == "static",
        "chunk_size": engine.prefill_tokens,
    }
    return json.dumps({"model": model, "search": search}, indent=1) + "\n"


def _before_the_decoder(tower: str) -> dict[str, object]:
    """The fields of the graphs that make embeddings of images and ids."""
    names = ("pixel_values", "image_features", "input_ids", "inputs_embeds")
    pixel_values, image_features, input_ids, inputs_embeds = ({name: name} for name in names)
    return {
        "vision": {"filename": tower, "inputs": pixel_values, "outputs": image_features},
        "embedding": {"filename": GENAI_EMBEDDING, "inputs": input_ids | image_features, "outputs": inputs_embeds},
    }


def _in_vocabulary(engine: UnfinishedEngine, ids: Iterable[int | None]) -> list[int]:
    """Return the ids that are in the vocabulary; onnxruntime-genai refuses a file with others."""
    return [token for token in ids if token is not None and 0 <= token < engine.config.vocab_size]
