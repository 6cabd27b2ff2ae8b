"""Checkpoints for other programs, put together by hand: what `l4export build --target compressed-tensors` writes."""

from __future__ import annotations

import json
from pathlib import Path

from l4export.checkpoint import open_checkpoint
from l4export.engine.checkpoint_manifest import CHECKPOINT_MANIFEST, CheckpointManifest
from l4export.quantization.policy import Policy, Rule
from l4export.storage.file_records import file_record
from quantised_checkpoints import Linears, quantised

W4A16 = Linears(packed=True, bits=4, strategy="group", group=32)
W8A16 = Linears(packed=True, bits=8, strategy="group", group=32)
FP8 = Linears(is_float=True)
FORMS = {"W4A16": W4A16, "W8A16": W8A16, "FP8": FP8}

_LEFT = ["re:.*lm_head", "re:.*self_attn", "re:.*router", "re:.*vision_model.*", "re:.*multi_modal_projector.*"]
_EVERY_TOKEN = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}


def written(source: Path, target: Path, form: Linears) -> Path:
    """A float checkpoint -> TARGET with its MLPs and experts in `form`; `float_of(TARGET)` has the same numbers."""
    quantised(source, target, form)
    path = target / "config.json"
    config = json.loads(path.read_text())
    (group,) = config["quantization_config"]["config_groups"].values()
    group["input_activations"] = _EVERY_TOKEN if form.is_float else None
    layout = "float-quantized" if form.is_float else "pack-quantized"
    config["quantization_config"] |= {"format": layout, "ignore": _LEFT}
    path.write_text(json.dumps(config))
    sign(target)
    return target


def sign(target: Path) -> None:
    """Give a checkpoint the manifest that fits its files as they are."""
    opened = open_checkpoint(target)
    manifest = CheckpointManifest(
        generator="l4export test",
        target="compressed-tensors",
        model=opened.config,
        options={"weights": {"policy": Policy((Rule(("*.feed_forward.*",), "int8"),)).to_dict()}},
        source={},
        files={file.name: file_record(file) for file in sorted(target.iterdir()) if file.is_file()},
        vision=opened.vision_config() if opened.has_vision() else None,
    )
    (target / CHECKPOINT_MANIFEST).parent.mkdir(exist_ok=True)
    (target / CHECKPOINT_MANIFEST).write_text(manifest.to_json())
