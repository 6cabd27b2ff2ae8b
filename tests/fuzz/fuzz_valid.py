"""The valid inputs that cases start from: small checkpoints, engines, tokenizers."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fuzz_files import Files, Pieces, pack_pieces, pieces_of

__all__ = ["TEMPLATE", "VOCABULARY", "small_checkpoint", "tokenizers"]

VOCABULARY = 320
"""Tokens of the small checkpoints' models."""

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>"
    "{{ message['content'] | trim }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A chat template as models have it."""


def small_checkpoint(path: Path, variant: str, layers: int = 2) -> None:
    """A tiny sample cut to its first layers; `multimodal` is a Scout within a multimodal checkpoint, in two shards."""
    from l4export.checkpoint.sample import write_sample

    write_sample(path, "scout" if variant == "multimodal" else variant, "tiny", seed=3)
    config = json.loads((path / "config.json").read_text())
    file = path / "model.safetensors"
    tensors = {
        name: entry
        for name, entry in pieces_of(file.read_bytes()).items()
        if not (found := re.match(r"model\.layers\.(\d+)\.", name)) or int(found[1]) < layers
    }
    config |= {"num_hidden_layers": layers, "max_position_embeddings": 256, "vocab_size": VOCABULARY}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:  # more rows than the sample has, as the tokenizers have more than 256 tokens
            entry, piece = tensors[name]
            row = len(piece) // entry["shape"][0]
            tensors[name] = {**entry, "shape": [VOCABULARY, entry["shape"][1]]}, (piece * 2)[: VOCABULARY * row]
    config["no_rope_layers"] = config["no_rope_layers"][:layers]
    config["moe_layers"] = [layer for layer in config["moe_layers"] if layer < layers]
    (path / "generation_config.json").write_text(json.dumps({"bos_token_id": 240, "eos_token_id": [241, 248]}))
    if variant == "multimodal":
        config = {
            "architectures": ["Llama4ForConditionalGeneration"],
            "model_type": "llama4",
            "text_config": {key: value for key, value in config.items() if key != "architectures"},
            "vision_config": {"hidden_size": 8},
        }
        tensors = {f"language_model.{name}": entry for name, entry in tensors.items()}
        file.unlink()
        _write_shards(path, tensors)
    else:
        file.write_bytes(pack_pieces(tensors))
    (path / "config.json").write_text(json.dumps(config, indent=1))


def _write_shards(path: Path, tensors: Pieces) -> None:
    names = list(tensors)
    weight_map = {}
    for shard in range(2):
        file = f"model-{shard + 1:05d}-of-00002.safetensors"
        chosen = names[shard::2]
        (path / file).write_bytes(pack_pieces({name: tensors[name] for name in chosen}))
        weight_map |= dict.fromkeys(chosen, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def tokenizers() -> dict[str, Files]:
    """The files of one small tokenizer of each kind, trained on a sentence; the first is as Llama 4 has it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    text = ["In the beginning God created the heaven and the earth. And the earth was without form, and void; " * 3]
    special = ["<|begin|>", "<|end|>", "<|user|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained = {
        "bpe": (models.BPE(), trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)),
        "unigram": (models.Unigram(), trainers.UnigramTrainer(vocab_size=60, unk_token="?", show_progress=False)),
        "wordpiece": (models.WordPiece(unk_token="?"), trainers.WordPieceTrainer(vocab_size=80, show_progress=False)),
        "wordlevel": (models.WordLevel(unk_token="?"), trainers.WordLevelTrainer(show_progress=False)),
    }
    found = {}
    for name, (model, trainer) in trained.items():
        tokenizer = Tokenizer(model)
        if name == "bpe":
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
            trainer.special_tokens = [AddedToken("?", special=True)]
        tokenizer.train_from_iterator(text, trainer)
        tokenizer.add_special_tokens(special)
        pair = ("<|begin|>", tokenizer.token_to_id("<|begin|>"))
        tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[pair])
        config = {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}, "chat_template": TEMPLATE}
        found[name] = {
            "tokenizer.json": tokenizer.to_str().encode(),
            "tokenizer_config.json": json.dumps(config).encode(),
        }
    return found
