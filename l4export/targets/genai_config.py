"""`genai_config.json`, with which onnxruntime-genai opens an engine directory as it is."""

from __future__ import annotations

import json

from l4export.engine.manifest import DECODER
from l4export.model.config import ModelConfig

__all__ = ["GENAI_LAYOUTS", "genai_config"]

GENAI_LAYOUTS = ("concat", "static")
"""KV layouts that onnxruntime-genai runs correctly. It cuts a prompt at multiples of its chunk size counted from where
the prompt starts, so a second prompt would run over the end of a chunk, which layout `chunked` refuses."""


def genai_config(
    config: ModelConfig, kv_layout: str, max_context: int, prefill_tokens: int, fp8_activations: bool = False
) -> str:
    """The file's text.

    onnxruntime-genai computes nothing of the model itself: "llama" only selects its generic decoder loop. With layout
    `static` it binds one buffer to past and present; it cuts prompts into pieces of `prefill_tokens`. With
    FP8 activations ONNX Runtime is kept from fusing products, as in `l4export.runtimes.engine`.
    """
    names = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    entries = {"session.disable_quant_qdq": "1"} if fp8_activations else {}
    model = {
        "type": "llama",
        "bos_token_id": _first(config.bos_token_id, 0),
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": _first(config.pad_token_id, *config.eos_token_ids, 0),
        "vocab_size": config.vocab_size,
        "context_length": max_context,
        "decoder": {
            "session_options": {"log_id": "l4export", "provider_options": [], **entries},
            "filename": f"{DECODER}.onnx",
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
    }
    search = {
        "max_length": max_context,
        "do_sample": False,
        "past_present_share_buffer": kv_layout == "static",
        "chunk_size": prefill_tokens,
    }
    return json.dumps({"model": model, "search": search}, indent=1) + "\n"


def _first(*candidates: int | None) -> int:
    return next(candidate for candidate in candidates if candidate is not None)
