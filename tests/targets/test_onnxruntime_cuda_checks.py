"""An ort-cuda graph without a GPU: how many nodes a layer has, and that nothing goes between host and device."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from l4export.compiler.pipeline import pipeline, run_passes, specialisation
from l4export.errors import InputError
from l4export.graph.builder import GraphBuilder
from l4export.graph.host_memory import crossings, host_values, overridable_inputs, uncapturable_nodes
from l4export.model.config import ModelConfig
from l4export.model.decoder import build_decoder
from l4export.quantization.policy import Policy, Rule, standard_policy
from l4export.targets import GraphOptions
from l4export.targets.onnxruntime_cuda_checks import check_cuda_graph
from l4export.weights.recipes import Source
from tiny_graphs import UnreadableData, tiny_config

VARIANTS = ("scout", "maverick", "guard", "mobile")
DENSE, EXPERTS, TEMPERATURE = 10, 17, 3
"""The most nodes of a decoder layer: with a dense feed-forward, or with routed and shared experts; and what the
temperature of queries adds in layers that do not rotate. The router's Reshape and two of the temperature's nodes are
views, for which nothing is launched."""


def lowered(
    variant: str, quant: str = "none", layout: str = "chunked", policy: Policy | None = None, **changes: object
) -> tuple[ModelConfig, ir.Model, ir.Model]:
    """The configuration, the graph before the passes that only a GPU follows, and the graph after them."""
    config = dataclasses.replace(tiny_config(variant), **{"intermediate_size": 128, **changes})
    model = build_decoder(config, lambda _, shape: Source(UnreadableData(shape, np.float16)), ir.DataType.FLOAT16)
    context = 16 if layout == "static" else 64  # static: within one chunk, or attention needs a mask
    options = GraphOptions(layout, context, policy or standard_policy(quant))
    run_passes(model, pipeline("ort-cuda", options))
    special = model.clone()
    run_passes(special, specialisation("ort-cuda", options))
    return config, model, special


def by_layer(model: ir.Model) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for node in model.graph:
        if match := re.match(r"/layers\.(\d+)/", str(node.name)):
            found.setdefault(int(match[1]), []).append(node.op_type)
    return found


@pytest.mark.parametrize("layout", ["static", "chunked"])
@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_layer_has_more_nodes_and_nothing_crosses(variant: str, quant: str, layout: str) -> None:
    config, portable, model = lowered(variant, quant, layout)
    for graph in (portable.graph, model.graph):
        assert not overridable_inputs(graph)
        assert not [*crossings(graph), *uncapturable_nodes(graph)]
    check_cuda_graph(model)
    layers = by_layer(model)
    assert sorted(layers) == list(range(config.num_hidden_layers))
    for layer, types in layers.items():
        tempered = config.attn_temperature_tuning and not config.rope_layers[layer]
        most = (EXPERTS if config.is_moe(layer) else DENSE) + (TEMPERATURE if tempered else 0)
        assert len(types) <= most, (layer, Counter(types))
        assert not {"Split", "Cast", "CastLike", "Swish"} & set(types)


def test_a_layer_of_scout_node_by_node() -> None:
    _, _, model = lowered("scout", "int4")
    assert Counter(by_layer(model)[1]) == {
        "MatMulNBits": 5,  # q|k|v, o, and of the shared expert gate, up and down
        "SkipSimplifiedLayerNormalization": 2,
        "GroupQueryAttention": 1,
        **dict.fromkeys(("FusedMatMul", "ReduceMax", "Sigmoid", "Reshape", "QMoE"), 1),  # router and routed experts
        "QuickGelu": 1,
        "Mul": 2,  # by the router's score; of gate and up
        "Add": 1,
    }


def test_linears_and_experts_may_have_blocks_of_their_own() -> None:
    """32 is what the fast kernels of MatMulNBits take, 64 and 128 what QMoE takes."""
    rules = (
        Rule(("model.layers.*_proj.weight",), "int4", block_size=32),
        Rule(("model.layers.*.experts.*_proj",), "int4", block_size=128),
    )
    _, _, model = lowered("scout", policy=Policy(rules), hidden_size=128)
    check_cuda_graph(model)
    blocks = {
        (node.op_type, node.attributes.get_int("block_size"))
        for node in model.graph
        if node.op_type in ("MatMulNBits", "QMoE")
    }
    assert blocks == {("MatMulNBits", 32), ("QMoE", 128)}


# Graphs that are broken by hand

Break = Callable[[ir.Model], None]


def attention(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == "GroupQueryAttention")


def inserted(model: ir.Model, before: ir.Node, b: GraphBuilder) -> None:
    for value in b.initializers:
        model.graph.register_initializer(value)
    model.graph.insert_before(before, b.nodes)


def total_from_the_mask(model: ir.Model) -> None:
    """The graph of the engines that were wrong on a card."""
    node, b = attention(model), GraphBuilder("/broken")
    mask = next(value for value in model.graph.inputs if value.name == "attention_mask")
    longest = b.op("ReduceMax", b.op("ReduceSum", mask, b.constant([1], "axis"), keepdims=0), keepdims=0)
    node.replace_input_with(6, b.op("Cast", longest, to=int(ir.DataType.INT32), name="total"))
    inserted(model, node, b)


def range_over_a_length(model: ir.Model) -> None:
    node, b = attention(model), GraphBuilder("/broken")
    length = b.op("ReduceMax", node.inputs[5], keepdims=0)
    b.op("Range", b.constant(0, "zero"), length, b.constant(1, "one"), name="keys")
    inserted(model, node, b)


def shape_from_values(model: ir.Model) -> None:
    node, b = attention(model), GraphBuilder("/broken")
    b.op("Expand", b.constant(0, "zero"), node.inputs[5], name="expanded")
    inserted(model, node, b)


def length_that_the_device_adds(model: ir.Model) -> None:
    node, b = attention(model), GraphBuilder("/broken")
    tokens = b.op("Shape", next(iter(model.graph.inputs)), start=1, end=2, name="tokens")
    b.op("Sub", node.inputs[5], tokens, name="past")
    inserted(model, node, b)


def input_read_on_both_sides(model: ir.Model) -> None:
    node, b = attention(model), GraphBuilder("/broken")
    keep = next(value for value in model.graph.inputs if value.name == "logits_to_keep")
    b.op("Add", node.inputs[5], keep, name="sum")
    inserted(model, node, b)


def default_of_an_input(model: ir.Model) -> None:
    value = next(value for value in model.graph.inputs if value.name == "mask_start")
    value.const_value = ir.tensor(np.zeros(1, np.int64), name="mask_start")
    model.graph.register_initializer(value)


def values_that_are_counted(model: ir.Model) -> None:
    node, b = attention(model), GraphBuilder("/broken")
    b.op("NonZero", node.inputs[5], name="rows")
    inserted(model, node, b)


def gathered_by_a_vector(model: ir.Model) -> None:
    node, b = attention(model), GraphBuilder("/broken")
    b.op("GatherND", node.inputs[5], b.constant([[0]], "index"), name="rows")  # type: ignore[list-item]
    inserted(model, node, b)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (total_from_the_mask, "GroupQueryAttention reads /broken/total on the host, and it is computed on the device"),
        (range_over_a_length, "/broken/keys reads /broken/ReduceMax on the host"),
        (shape_from_values, "/broken/expanded reads .*seqlens_k on the host"),
        (length_that_the_device_adds, "/broken/past reads /broken/tokens on the device, .* computed on the host"),
        (input_read_on_both_sides, "logits_to_keep is read both on the host and on the device"),
        (default_of_an_input, "input mask_start has a default, which CUDA reads instead"),
        (values_that_are_counted, "/broken/rows is a NonZero: its output's shape depends on values"),
        (gathered_by_a_vector, "/broken/rows is a GatherND: its kernel copies from memory of the host"),
    ],
)
def test_a_graph_that_would_copy_or_be_wrong_is_refused(broken: Break, words: str) -> None:
    _, _, model = lowered("scout")
    broken(model)
    with pytest.raises(InputError, match=words):
        check_cuda_graph(model)


def test_heads_that_attention_does_not_take_are_refused_by_name() -> None:
    """Their attention is written out, with a cache that grows by a number of the device."""
    _, _, model = lowered("scout", head_dim=24)
    with pytest.raises(InputError, match=r"cannot keep this model's call on the GPU: /layers\.0/attn/Attention/"):
        check_cuda_graph(model)


def test_only_logits_to_keep_is_read_on_the_host() -> None:
    """All other inputs may lie in the device's memory; what follows from shapes stays with the host."""
    _, _, model = lowered("scout")
    host = host_values(model.graph)
    readers = {value.name for value in model.graph.inputs for use in value.uses() if use.node.outputs[0] in host}
    shapes = {value.name for value in model.graph.inputs for use in value.uses() if use.node.op_type == "Shape"}
    assert readers - shapes == {"logits_to_keep"}


def test_ort_cpu_has_optional_inputs_and_crossings() -> None:
    """The rule is one of CUDA alone: the same check finds what the graph for CPUs has."""
    config = tiny_config()
    model = build_decoder(config, lambda _, shape: Source(UnreadableData(shape, np.float32)), ir.DataType.FLOAT)
    run_passes(model, pipeline("ort-cpu", GraphOptions("chunked", 64)))
    assert overridable_inputs(model.graph) == ["logits_to_keep", "mask_start", "cache_start"]
    assert any("total_sequence_length on the host" in clause for clause in crossings(model.graph))
