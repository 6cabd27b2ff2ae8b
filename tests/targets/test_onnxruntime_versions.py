"""The least ONNX Runtime of a graph. What the versions are was found by executing; here, that graphs are told right."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from l4export.quantization.policy import standard_policy
from l4export.targets.onnxruntime_versions import least_onnxruntime
from manifests import planned_manifest
from workshop import Workshop

INT4 = {"policy": standard_policy("int4")}


@pytest.mark.parametrize(
    ("variant", "options", "due"),
    [
        ("scout", {}, "1.24"),
        ("scout", {"kv_dtype": "fp16"}, "1.24"),
        ("scout", {"kv_dtype": "int8"}, "1.28"),
        ("scout", INT4, "1.31"),
        ("guard", INT4, "1.24"),
        ("guard", {**INT4, "kv_dtype": "int4"}, "1.28"),
        ("scout", {"target": "onnx"}, "1.25"),
        ("scout", {"target": "onnx", "policy": standard_policy("fp8")}, "1.28"),
    ],
)
def test_what_a_manifest_says(workshop: Workshop, variant: str, options: dict[str, Any], due: str) -> None:
    graphs = planned_manifest(workshop.checkpoint(variant), **options)["graphs"]
    assert graphs["decoder"]["runtime"] == {"name": "onnxruntime", "provider": "cpu", "min_version": due}


def test_each_graph_says_its_own(workshop: Workshop) -> None:
    options = {"target": "ort-cuda", "dtype": "fp16", "kv_layout": "chunked"}
    graphs = planned_manifest(workshop.checkpoint("scout"), **options)["graphs"]
    least = {name: graph["runtime"]["min_version"] for name, graph in graphs.items()}
    assert least == {"decoder": "1.31", "check": "1.31", "portable": "1.24"}


def test_a_compiled_engine_says_it_itself(workshop: Workshop) -> None:
    graphs = planned_manifest(workshop.checkpoint("scout"), target="tensorrt", dtype="bf16")["graphs"]
    assert "min_version" not in graphs["decoder"]["runtime"]


@pytest.mark.parametrize(("domain", "due"), [("com.microsoft", "1.31"), ("", "1.24")])
def test_an_operator_that_nobody_has_tried(domain: str, due: str) -> None:
    """Of ONNX Runtime's own ones only the tested version is known to have it, also within a branch."""
    inner = ir.Graph([], [], nodes=[ir.Node(domain, "Novelty", [])], opset_imports={"": 24})
    branch = ir.Node("", "If", [], attributes=[ir.AttrGraph("then_branch", inner)])
    model = ir.Model(ir.Graph([], [], nodes=[branch], opset_imports={"": 24}), ir_version=11)
    assert least_onnxruntime(model, "cpu") == due
