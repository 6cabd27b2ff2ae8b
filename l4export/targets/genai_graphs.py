"""The graphs of an engine that sees images, as onnxruntime-genai runs them: an embedding, and a decoder behind it.

Its pipeline for images has three graphs. The vision tower is one as it is. The other two are the decoder, cut where the
features of images have been merged into the embeddings:

    embedding   input_ids int64 [B, S], image_features [rows, D]                    -> inputs_embeds [B, S, D]
    decoder     inputs_embeds [B, S, D], and the whole decoder's other inputs       -> the whole decoder's outputs

Both read the decoder's own data files, so that an engine grows by two graphs and no weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from l4export.graph.builder import GraphBuilder, extract_part
from l4export.graph.contents import LayerValue, layer_values
from l4export.graph.dialect import DOMAIN, dialect_functions
from l4export.targets.target import UnfinishedEngine
from l4export.weights.emission import emit_graph

__all__ = ["GENAI_DECODER", "GENAI_EMBEDDING", "cut_at_embeddings", "write_genai_graphs"]

GENAI_EMBEDDING = "embedding.onnx"
GENAI_DECODER = "genai_decoder.onnx"


def write_genai_graphs(engine: UnfinishedEngine) -> list[str]:
    """Write both graphs beside the data files that they read, and return their names."""
    assert engine.image_token is not None
    names, models = (GENAI_EMBEDDING, GENAI_DECODER), cut_at_embeddings(engine.model, engine.image_token)
    return [
        emit_graph(model, (), engine.directory, name.removesuffix(".onnx"))
        for name, model in zip(names, models, strict=True)
    ]


def cut_at_embeddings(model: ir.Model, image_token: int) -> tuple[ir.Model, ir.Model]:
    """The two parts of a lowered decoder that sees images; weights are shared with it, not copied.

    onnxruntime-genai has features at the first prompt and none later, not even where image tokens are appended. So the
    embedding refuses image tokens without features (`l4.RequireFeatures`), which the whole decoder takes for words.
    """
    whole = model.graph
    inputs = {value.name: value for value in whole.inputs}
    ids, features = inputs["input_ids"], inputs["image_features"]
    merged = layer_values(whole)[LayerValue("merged", 0)]
    embedding, decoder = _part(model, [ids, features], [merged]), _part(model, [merged, *whole.inputs], whole.outputs)
    assert features.shape is not None
    for value in (embedding.graph.outputs[0], decoder.graph.inputs[0]):
        value.name, value.type = "inputs_embeds", features.type
        value.shape = ir.Shape(["batch", "sequence", *features.shape[1:]])
    _require_features(embedding, image_token)
    _count_embeddings(decoder.graph)
    return embedding, decoder


def _part(model: ir.Model, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Model:
    return ir.Model(
        extract_part(model.graph, inputs, outputs),
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
    )


def _require_features(embedding: ir.Model, image_token: int) -> None:
    """Features must be given, and image tokens do not come without them."""
    from l4export import passes

    graph, b = embedding.graph, GraphBuilder("/genai")
    ids, features = graph.inputs
    readers = list(ids.uses())
    checked = b.op("RequireFeatures", ids, features, domain=DOMAIN, name="input_ids", image_token=image_token)
    for node, index in readers:
        node.replace_input_with(index, checked)
    graph.insert_before(graph[0], b.nodes)
    graph.opset_imports[DOMAIN] = 1
    embedding.functions.update({function.identifier(): function for function in dialect_functions()})
    passes.RequireInputs()(embedding)
    passes.InlineDialect()(embedding)


def _count_embeddings(decoder: ir.Graph) -> None:
    """The number of new tokens is that of their embeddings; ids are not needed any more."""
    embeddings, ids, *others = decoder.inputs
    assert all(use.node.op_type == "Shape" for use in ids.uses()), "ids are read behind the embedding"
    ids.replace_all_uses_with(embeddings)
    decoder.inputs[:] = [embeddings, *(value for value in others if value.uses())]
