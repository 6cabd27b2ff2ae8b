"""A client of decoders that see images, with nothing but ONNX Runtime and a manifest; and transformers with images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from l4export.engine.manifest import load_manifest


class ImageClient:
    """One engine's tower and decoder on the CPU, and rows of tokens that grow side by side."""

    def __init__(self, engine: Path, rows: int = 1) -> None:
        self.manifest = load_manifest(engine)
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        self.decoder, self.tower = (
            ort.InferenceSession(engine / self.manifest.graphs[name].file, options, ["CPUExecutionProvider"])
            for name in ("decoder", "vision")
        )
        assert self.manifest.vision is not None
        self.token = self.manifest.vision.image_token_id
        self.lengths = np.zeros(rows, np.int64)
        self.caches: dict[str, np.ndarray] = {}
        for value in self.manifest.decoder.inputs:
            if value.name.startswith("past_key_values."):
                layer = self.manifest.kv_layers[int(value.name.split(".")[1])]
                shape = rows, value.shape[1], layer.capacity or 0, value.shape[3]
                self.caches[value.name] = np.zeros(shape, value.dtype)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Rows of features for tiles."""
        return np.asarray(self.tower.run(None, {"pixel_values": pixels})[0])

    def call(self, ids: np.ndarray, counts: Sequence[int], features: np.ndarray | None) -> np.ndarray:
        """Logits of new tokens [rows, S], of which each row has so many."""
        mask = (np.arange(ids.shape[1]) < np.asarray(counts)[:, None]).astype(np.int64)
        feeds = {"input_ids": ids, "attention_mask": mask, "mask_start": self.lengths, **self.caches}
        if features is not None:
            feeds["image_features"] = features
        logits, *presents = self.decoder.run(None, feeds)
        self.caches = dict(zip(self.caches, presents, strict=True))
        self.lengths = self.lengths + np.asarray(counts)
        return np.asarray(logits)

    def feed(self, ids: np.ndarray, features: np.ndarray, cuts: Sequence[int] = ()) -> np.ndarray:
        """Logits of one row's tokens [S], cut at these positions; a call has the features of its image tokens."""
        done, found = 0, []
        for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            part = ids[None, start:stop]
            count = int((part == self.token).sum())
            found.append(self.call(part, [stop - start], features[done : done + count])[0])
            done += count
        return np.concatenate(found)


def transformers_logits(checkpoint: Path, ids: np.ndarray, pixels: np.ndarray, scratch: Path) -> np.ndarray:
    """Logits [B, S, V] of transformers' whole model, which cannot run a chunk size of null."""
    import torch
    from transformers import Llama4ForConditionalGeneration

    raw: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    if raw["text_config"]["attention_chunk_size"] is None:
        raw["text_config"]["attention_chunk_size"] = 4096
        shutil.copytree(checkpoint, scratch, dirs_exist_ok=True)
        (scratch / "config.json").write_text(json.dumps(raw))
        checkpoint = scratch
    model = Llama4ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        return np.asarray(model(input_ids=torch.from_numpy(ids), pixel_values=torch.from_numpy(pixels)).logits)
