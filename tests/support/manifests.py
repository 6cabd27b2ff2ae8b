"""Manifests of engines that are planned and not built: the JSON, as a build would write it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from l4export.compiler.manifest import engine_manifest
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.engine.manifest import Manifest
from l4export.engine.manifest_checks import check_manifest
from l4export.engine.manifest_reader import read_manifest
from l4export.quantization.policy import standard_policy
from l4export.storage.file_records import FileRecord
from l4export.storage.safetensors import parse_json_object

SCHEMA = Draft202012Validator(json.loads((resources.files("l4export.engine") / "manifest.schema.json").read_text()))
"""What other runtimes hold a manifest against."""

RECORD = FileRecord(1, "0" * 64)
INT4 = standard_policy("int4")
RTX = {"target": "tensorrt-rtx", "dtype": "fp16", "compute_capabilities": ("8.9",)}

KINDS: dict[str, dict[str, Any]] = {
    "static": {},
    "chunked": {"kv_layout": "chunked"},
    "concat": {"kv_layout": "concat"},
    "kv-int4": {"kv_layout": "chunked", "kv_dtype": "int4", "policy": INT4},
    "onnx": {"target": "onnx", "policy": INT4},
    "cuda": {"target": "ort-cuda", "dtype": "fp16", "kv_layout": "chunked"},
    "tensorrt": {"target": "tensorrt", "dtype": "bf16"},
    "tensorrt-parts": {**RTX, "kv_layout": "chunked", "policy": INT4, "parts": ((0, 1), (1, 3), (3, 4))},
}
"""One of each kind: the options of `planned_manifest`."""


def planned_manifest(checkpoint: Path, parts: Sequence[tuple[int, int]] = (), **options: Any) -> dict[str, Any]:
    """The manifest's JSON; `parts` are ranges of layers, if not those of the plan."""
    planned = plan_build(checkpoint, BuildOptions(**{"max_context": 100, **options}))
    if parts:
        planned = dataclasses.replace(planned, parts=tuple(parts))
    manifest = engine_manifest(planned, {}, {"config.json": RECORD})
    graphs = manifest.graphs.values()
    names = [graph.file for graph in graphs]
    names += [name for graph in graphs for part in graph.parts for name in (part.graph, part.engine)]
    raw: dict[str, Any] = json.loads(dataclasses.replace(manifest, files=dict.fromkeys(names, RECORD)).to_json())
    return raw


def read(text: str) -> Manifest:
    """As `load_manifest`, from the file's text."""
    manifest = read_manifest(parse_json_object(text.encode(), "m/manifest.json"), "m/manifest.json")
    check_manifest(manifest, "m/manifest.json")
    return manifest
