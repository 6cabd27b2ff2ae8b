"""Writes `llmcompressor_record.json`: what llm-compressor makes of small Llama 4 models, by the recipe of its examples.

It runs in an environment of its own, for llm-compressor wants an older transformers. torch goes first, its CPU build:

    python3.11 -m venv ENV && ENV/bin/pip install torch && ENV/bin/pip install llmcompressor
    PYTHONPATH=.:tests/support python tests/support/llmcompressor_models.py MODELS
    ENV/bin/python tests/support/write_llmcompressor_record.py MODELS OUT tests/support/llmcompressor_record.json

OUT keeps the directories that llm-compressor wrote.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from checkpoint_summary import summary
from compressed_tensors.quantization import preset_name_to_scheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modeling.moe.linearize import load_quantizable_moe
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

IGNORE = ["re:.*lm_head", "re:.*self_attn", "re:.*router", "re:.*vision_model.*", "re:.*multi_modal_projector.*",
          "Llama4TextAttention"]  # fmt: skip
"""What its Llama 4 examples leave out."""
GROUP = 32
"""The presets have groups of 128, for which the models are too small."""
VERSIONS = ("llmcompressor", "compressed-tensors", "transformers", "torch")


def compress(source: Path, scheme: str, out: Path) -> None:
    """Quantise `source`: with GPTQ on random tokens where codes are integers, else by rounding."""
    architecture = getattr(transformers, json.loads((source / "config.json").read_text())["architectures"][0])
    # It looks for `text_config`, which a model without vision has not: its config is that config.
    transformers.Llama4TextConfig.text_config = property(lambda config: config)
    with load_quantizable_moe(architecture):
        model = architecture.from_pretrained(source)
    if scheme == "FP8_DYNAMIC":
        oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=IGNORE))
    else:
        preset = preset_name_to_scheme(scheme, ["Linear"])
        preset.weights.group_size = GROUP
        vocabulary = model.config.get_text_config().vocab_size
        ids = torch.randint(0, vocabulary // 2, (16, 64), generator=torch.Generator().manual_seed(0))
        oneshot(
            model=model,
            recipe=GPTQModifier(config_groups={"group_0": preset}, ignore=IGNORE),
            dataset=Dataset.from_dict({"input_ids": ids.tolist()}),
            processor=_any_tokenizer(),
            max_seq_length=64,
            num_calibration_samples=16,
        )
    model.save_pretrained(out)


def _any_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """It is asked for, though the texts are token ids."""
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel()))


def main(models: Path, out: Path, record: Path) -> None:
    """Compress every model by every scheme, and write down what was made."""
    found: dict[str, Any] = {"versions": {name: importlib.metadata.version(name) for name in VERSIONS}}
    for source in sorted(models.iterdir()):
        for scheme in ("W4A16", "W8A16", "FP8_DYNAMIC"):
            target = out / f"{source.name}-{scheme}"
            compress(source, scheme, target)
            found[target.name] = summary(target, source)
    record.write_text(_json(found) + "\n")


def _json(value: Any, indent: str = "") -> str:
    """JSON with what fits a line in a line."""
    plain = json.dumps(value)
    if not isinstance(value, dict) or len(indent) + len(plain) <= 120:
        return plain
    inner = indent + "  "
    lines = [f"{inner}{json.dumps(name)}: {_json(each, inner)}" for name, each in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
