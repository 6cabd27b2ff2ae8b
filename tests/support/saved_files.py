"""Files of sessions, changed by somebody who knows how they are made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from l4export.storage.safetensors import TensorFile

Tensors = dict[str, np.ndarray]


def forged(path: Path, edit: Callable[[dict[str, Any], Tensors], Any]) -> None:
    """Change the state and the tensors of a file and make its digest right again."""
    tensors, metadata = load_file(path), TensorFile(path).metadata
    state = json.loads(metadata["state"])
    order = [entry.name for entry in TensorFile(path).entries.values()]
    edit(state, tensors)
    metadata["state"] = json.dumps(state)
    digest = hashlib.sha256(metadata["state"].encode())
    for name in [*order, *(tensors.keys() - order)]:
        if name in tensors:
            digest.update(tensors[name].tobytes())
    save_file(tensors, path, metadata | {"sha256": digest.hexdigest()})
