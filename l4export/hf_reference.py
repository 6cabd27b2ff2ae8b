"""The reference: transformers' Llama 4 in float32 on the checkpoint's own weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.checkpoint import open_checkpoint
from l4export.errors import EnvironmentLacks

__all__ = ["HFReference"]

_LONGEST = 2**31 - 1


class HFReference:
    """`Llama4ForCausalLM`, loaded by transformers itself in float32 on the CPU.

    Independent of l4export's own readers: config and weights go through `from_pretrained`. Only what transformers
    cannot run is changed in the config: `attn_temperature_tuning: 4` means true, an integral `floor_scale` is an
    integer, and an `attention_chunk_size` of null (plain causal attention) becomes a chunk no sequence outgrows.

    Raises:
        EnvironmentLacks: torch or transformers is not installed.
        InputError: the checkpoint is not one l4export reads.
    """

    def __init__(self, checkpoint: Path) -> None:
        opened = open_checkpoint(checkpoint)
        try:
            import torch
            import transformers
        except ImportError as error:
            raise EnvironmentLacks(
                "the reference needs torch and transformers: pip install 'l4export[reference]'"
            ) from error
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        config = transformers.Llama4TextConfig.from_dict(_runnable(opened.raw_config))
        self._torch = torch
        self.vocab_size = opened.config.vocab_size
        self.model: Any = transformers.Llama4ForCausalLM.from_pretrained(
            checkpoint, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True
        ).eval()

    def logits(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """token_ids int64 [batch, tokens] -> logits float32 [batch, tokens, vocab], in one pass without a cache."""
        with self._torch.inference_mode():
            ids = self._torch.from_numpy(np.ascontiguousarray(token_ids))
            output: NDArray[np.float32] = self.model(input_ids=ids, use_cache=False).logits.float().numpy()
        return output

    def greedy(self, token_ids: Sequence[int], count: int) -> list[int]:
        """The next `count` tokens, each the likeliest one, with transformers' own cache and no stop token."""
        ids = self._torch.tensor([list(token_ids)])
        with self._torch.inference_mode():
            output = self.model(input_ids=ids, use_cache=True)
            tokens = [int(output.logits[0, -1].argmax())]
            while len(tokens) < count:
                step = self._torch.tensor([[tokens[-1]]])
                output = self.model(input_ids=step, past_key_values=output.past_key_values, use_cache=True)
                tokens.append(int(output.logits[0, -1].argmax()))
        return tokens


def _runnable(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The text config as transformers accepts it (see `HFReference`)."""
    text: dict[str, Any] = json.loads(json.dumps(raw.get("text_config", raw)))
    for name in ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"):
        if text.get(name) is None and raw.get(name) is not None:
            text[name] = raw[name]
    if isinstance(text.get("attn_temperature_tuning"), int | float):
        text["attn_temperature_tuning"] = bool(text["attn_temperature_tuning"])
    if isinstance(text.get("floor_scale"), float):
        text["floor_scale"] = int(text["floor_scale"])
    if "attention_chunk_size" in text and text["attention_chunk_size"] is None:
        text["attention_chunk_size"] = _LONGEST
    if text.get("num_local_experts") == 0 or text.get("interleave_moe_layer_step") == 0:
        text["moe_layers"] = text.get("moe_layers") or []
    return text
