"""The check graph of an engine: the decoder's first layers of every kind, what it is fed, and what a CPU gives.

A runtime executes it on a device before it trusts the device with the engine, and compares with the same layers of the
graph that a CPU can run, with the engine's own weights (`l4export.runtimes.onnxruntime.composition_check`).

The record of what the CPU gave is the one file of such an engine that may differ between two builds from the same
inputs, because versions of ONNX Runtime add up in other orders. So it does not count when a build is asked whether an
engine is up to date; it must only be the one that was built.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from l4export.compiler.plan import BuildPlan
from l4export.compiler.portable import portable_model
from l4export.engine.check_decoder import check_decoder
from l4export.engine.check_images import image_starts
from l4export.engine.check_record import CheckRecord, write_record
from l4export.engine.manifest import CHECK, CheckGraph, Manifest
from l4export.graph.contents import LayerValue, layer_values
from l4export.graph.layer_excerpt import excerpt_layers
from l4export.inspection.taps import TappedInference
from l4export.model.config import ModelConfig
from l4export.runtimes.cache.host_cache import new_host_cache
from l4export.runtimes.onnxruntime.composition_check import capacity, feed, seeded_images
from l4export.runtimes.session import Session
from l4export.weights.emission import emit_graph, refer_to_data
from l4export.weights.recipes import Recipe

__all__ = ["check_calls", "checked_layers", "fused_operators", "rounds_on_cpu", "write_check"]

_ORT_DOMAIN = "com.microsoft"

_TOKENS = 48
"""Of a check: enough for the kernels of many tokens, of some behind others, and of one; little work for a CPU."""

_COLUMNS = 256
"""Of the vocabulary, whose logits are kept at every position."""

_TIE = 0.02
"""A router is near a tie where its choice hangs on less than this part of its largest |logit|. Sums of float16 in
another order move logits by 1e-3 of it."""

_ROUNDS = 16
"""How often the layers are run at most: tokens near a tie are exchanged for others in between. Small engines took two
to fifteen runs. A token that is then still near a tie is rarely so near that a device chooses differently."""


def checked_layers(graph: ir.Graph, config: ModelConfig) -> tuple[int, ...]:
    """The first layer of every kind of attention and feed-forward block, and the first with any further operator.

    An operator is its type with its attributes and the dtypes and shapes of its constants, so a layer that a policy
    quantises in another way is among them.
    """
    found: list[int] = []
    kinds, known = set[tuple[bool, bool, bool]](), set[tuple[object, ...]]()
    for layer, operators in enumerate(_operators(graph, config.num_hidden_layers)):
        kind = config.chunked_layers[layer], config.rope_layers[layer], config.is_moe(layer)
        if kind not in kinds or not operators <= known:
            found.append(layer)
            kinds.add(kind)
            known |= operators
    return tuple(found)


def _operators(graph: ir.Graph, layers: int) -> Iterator[set[tuple[object, ...]]]:
    """Of each layer, those that no layer before it reads; what comes before the first layer counts as its own."""
    values, seen = layer_values(graph), set[ir.Node]()
    for layer in range(layers):
        found, nodes = set[tuple[object, ...]](), [values[LayerValue("residual", layer)].producer()]
        while nodes:
            node = nodes.pop()
            if node is not None and node not in seen:
                seen.add(node)
                found.add(_operator(node))
                nodes += [value.producer() for value in node.inputs if value is not None]
        yield found


def _operator(node: ir.Node) -> tuple[object, ...]:
    attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
    constants = [None if value is None else value.const_value for value in node.inputs]
    told = [constant and (constant.dtype, str(constant.shape)) for constant in constants]
    return node.domain, node.op_type, tuple(attributes), tuple(told)


def fused_operators(graph: ir.Graph) -> tuple[str, ...]:
    """The types of ONNX Runtime's own operators in a graph."""
    return tuple(sorted({node.op_type for node in graph if node.domain == _ORT_DOMAIN}))


def rounds_on_cpu(graph: ir.Graph) -> bool:
    """Whether ONNX Runtime's CPU provider rounds activations to int8 in a graph: before experts of 8 bits."""
    return any(node.op_type == "QMoE" and node.attributes.get_int("expert_weight_bits") == 8 for node in graph)


def check_calls(max_context: int, cut: int | None) -> tuple[int, tuple[int, ...]]:
    """The position of the first token, and the tokens of each call: many, then some, then one at a time.

    A chunk, of `cut` tokens, ends among the many where the context goes beyond it.
    """
    tokens = min(_TOKENS, max_context)
    few = tokens // 6
    many = tokens - 2 * few
    start = min(cut - many // 2, max_context - tokens) if cut and cut < max_context else 0
    return max(0, start), (many, *([few] if few else []), *[1] * few)


def write_check(planned: BuildPlan, manifest: Manifest, directory: Path) -> list[str]:
    """Write the check graph and its record into `directory`, beside the data files, and return the files' names.

    Nothing for targets without one. `planned.model` must refer to the data files. Memory: the graph's layers, as ONNX
    Runtime's CPU provider holds them.

    Raises:
        InputError: ONNX Runtime does not take the graph.
        StorageError: writing failed.
    """
    check = manifest.check
    if check is None:
        return []
    name = emit_graph(excerpt_layers(planned.model, check.layers), (), directory, CHECK)
    record = _recorded(_portable(planned, check.layers, directory), manifest, check, directory)
    write_record(directory / check.record, record)
    return [name, check.record]


def _portable(planned: BuildPlan, layers: Sequence[int], directory: Path) -> ir.Model:
    """The layers as a CPU can run them. Their weights are those of the data files, packed ones to be unpacked."""
    model = excerpt_layers(portable_model(planned.graph, directory), layers)
    refer_to_data(model, (), directory)
    missing = [name for name, value in model.graph.initializers.items() if isinstance(value.const_value, Recipe)]
    assert not missing, f"no data file holds {missing} as a CPU reads them"
    return model


def _recorded(model: ir.Model, manifest: Manifest, check: CheckGraph, directory: Path) -> CheckRecord:
    """Seeded tokens and features, none of which a router nearly gives to another expert, and the logits on the CPU."""
    decoder = check_decoder(manifest, check)
    config, values = decoder.model, layer_values(model.graph)
    routers = [str(values[LayerValue("router_logits", layer)].name) for layer in config.moe_layers]
    packed = [weight for weight in manifest.packed_weights if weight.name in model.graph.initializers]
    inference = TappedInference(directory, model, routers, packed)
    random, new_cache = np.random.default_rng(0), partial(new_host_cache, inference)
    fed = _Fed(check, decoder, random)
    for left in reversed(range(_ROUNDS)):
        features = seeded_images(fed.features)  # anew, because it keeps what it has seen
        session = Session(new_cache, decoder, 1, capacity(manifest, check), check.start, features)
        logits = feed(session, check, fed.ids)
        near = np.any([_near_ties(inference.taken(name), config.num_experts_per_tok) for name in routers], axis=0)
        if not left or not near.any():
            break
        fed.exchange(near)
    columns = random.choice(config.vocab_size, min(_COLUMNS, config.vocab_size), replace=False)
    return CheckRecord.of(check, fed.ids, logits, np.sort(columns).astype(np.int32), fed.features)


class _Fed:
    """Seeded tokens, and in an engine that sees images features for some of them.

    Attributes:
        ids: int32 [n].
        features: float16 [images, rows, D] of order one; None without images.
    """

    def __init__(self, check: CheckGraph, decoder: Manifest, random: np.random.Generator) -> None:
        self._random, self._vocab, count = random, decoder.model.vocab_size, sum(check.calls)
        starts, self._is_image = image_starts(check, decoder), np.zeros(count, np.bool_)
        self._token = -1 if decoder.vision is None else decoder.vision.image_token_id
        self.ids = self._words(count)
        self.features: NDArray[np.float16] | None = None
        if starts and decoder.vision is not None:
            shape = (len(starts), decoder.vision.rows_per_tile, decoder.model.hidden_size)
            for start in starts:
                self._is_image[start : start + shape[1]] = True
            self.ids[self._is_image] = self._token
            self.features = random.standard_normal(shape).astype(np.float16)

    def exchange(self, which: NDArray[np.bool_]) -> None:
        """Other tokens, and other features, in the place of these."""
        words = which & ~self._is_image
        self.ids[words] = self._words(int(words.sum()))
        if self.features is not None:
            rows = self.features.reshape(-1, self.features.shape[-1])  # a view
            seen = which[self._is_image]
            rows[seen] = self._random.standard_normal((int(seen.sum()), rows.shape[1])).astype(np.float16)

    def _words(self, count: int) -> NDArray[np.int32]:
        """Ids of tokens, none of which is that of images."""
        ids = self._random.integers(0, self._vocab, count, dtype=np.int32)
        ids[ids == self._token] = (self._token + 1) % self._vocab
        return ids


def _near_ties(logits: NDArray[np.float32], chosen: int) -> NDArray[np.bool_]:
    """For each token of router logits [T, E], whether an expert that is not among the `chosen` is nearly as likely."""
    ranked = -np.sort(-logits, axis=1)
    if chosen == ranked.shape[1]:
        return np.zeros(len(ranked), dtype=np.bool_)
    return np.asarray(ranked[:, chosen - 1] - ranked[:, chosen] < _TIE * np.abs(logits).max())
