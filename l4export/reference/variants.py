"""Variants of a model that differ from it in a few weights, run side by side with it, layer by layer.

A variant is the model itself until the first layer in which it differs, so nothing is computed for it before. From
there on, its activations go through every layer in one batch with those of all variants that leave the layer's weights
unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from l4export.model.weight_names import layer_of
from l4export.reference.image_rows import ImageRows
from l4export.reference.streamed_layer import Store
from l4export.reference.streamed_model import Replacement, StreamedReference
from l4export.reference.token_scores import divergence, log_probabilities
from l4export.reference.window import Window

__all__ = ["Comparison", "Variant", "compare_variants"]

_BATCH_TOKENS = 8192
"""The most tokens that go through a layer at once, because attention scores and activations take memory."""

_LOGIT_BYTES = 32 << 20
"""The most bytes of float32 logits that are held at once."""


@dataclass(frozen=True)
class Variant:
    """The model with `values` for the weights `names` (as `StreamedReference` has it), and with `stores[layer]` between
    each layer's keys and values and what attention reads of them."""

    names: frozenset[str]
    values: Replacement
    stores: tuple[Store, ...] = ()

    def replaced(self, name: str, rows: slice) -> NDArray[np.float32] | None:
        """Rows of a weight, if this variant replaces it; None otherwise."""
        return self.values(name, rows) if name in self.names else None

    def within(self, layer: int) -> Variant | None:
        """What differs in a layer, or None. Variants that have the same difference share the layer's weights."""
        names = frozenset(name for name in self.names if layer_of(name) == layer)
        return Variant(names, self.values, self.stores) if names or self.stores else None


@dataclass(frozen=True)
class Comparison:
    """Some positions of a window, int64 [n], and how far each variant departs from the model there.

    `expected` float64 [n, vocab] are the model's log probabilities, `kl` float64 [variants, n] KL(model || variant) in
    nats.
    """

    window: int
    positions: NDArray[np.int64]
    expected: NDArray[np.float64]
    kl: NDArray[np.float64]


def compare_variants(
    reference: StreamedReference,
    variants: Sequence[Variant],
    windows: Sequence[Window],
    on_layer: Callable[[int, int], None] | None = None,
) -> Iterator[Comparison]:
    """Run the model and its variants on every window, and compare them at its positions.

    Memory: a layer's weights, the residual streams [T, D] of a window for each variant, and some megabytes of logits;
    with images also the vision tower.
    `on_layer(window, layer)` is called before each layer of each window.
    """
    step = max(1, _LOGIT_BYTES // (4 * reference.config.vocab_size))
    others, tower = [reference.with_weights(variant.replaced) for variant in variants], reference.tower_rows()
    for number, window in enumerate(windows):
        tell = functools.partial(on_layer, number) if on_layer else None
        seen = tower.of(window.ids, window.images())
        hidden, *streams = _streams(reference, variants, window.ids, seen, tell)
        for start in range(0, len(window.positions), step):
            rows = window.positions[start : start + step]
            expected = log_probabilities(reference.logits(hidden[:, rows].numpy())[0])
            kl = np.empty((len(variants), len(expected)))
            for index, (other, stream) in enumerate(zip(others, streams, strict=True)):
                kl[index] = divergence(expected, log_probabilities(other.logits(stream[:, rows].numpy())[0]))
            yield Comparison(number, rows, expected, kl)


def _streams(
    reference: StreamedReference,
    variants: Sequence[Variant],
    window: Sequence[int],
    seen: ImageRows | None,
    on_layer: Callable[[int], None] | None,
) -> list[torch.Tensor]:
    """The residual streams [1, T, D] after the last layer: the model's, then each variant's."""
    ids = np.asarray([window], np.int64)
    hidden = torch.from_numpy(reference.embed(ids, seen))
    streams: dict[int, torch.Tensor] = {}
    for index, variant in enumerate(variants):
        if "model.embed_tokens.weight" in variant.names:
            streams[index] = torch.from_numpy(reference.with_weights(variant.replaced).embed(ids, seen))
    for layer in range(reference.config.num_hidden_layers):
        if on_layer:
            on_layer(layer)
        changes = [variant.within(layer) for variant in variants]
        unchanged = [index for index in streams if changes[index] is None]
        behind = _through(reference, layer, None, [hidden, *(streams[index] for index in unchanged)])
        for change in dict.fromkeys(change for change in changes if change):
            those = [index for index, other in enumerate(changes) if other == change]
            before = [streams.get(index, hidden) for index in those]
            streams |= zip(those, _through(reference, layer, change, before), strict=True)
        hidden = behind[0]
        streams |= zip(unchanged, behind[1:], strict=True)
    return [hidden, *(streams.get(index, hidden) for index in range(len(variants)))]


def _through(
    reference: StreamedReference, index: int, change: Variant | None, hidden: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Residual streams [1, T, D] through one layer."""
    layer = (reference.with_weights(change.replaced) if change else reference).layer(index)
    store = change.stores[index] if change and change.stores else None
    step = max(1, _BATCH_TOKENS // hidden[0].shape[1])
    found: list[torch.Tensor] = []
    for at in range(0, len(hidden), step):
        batch = torch.cat(list(hidden[at : at + step]))
        found += torch.from_numpy(layer(batch, reference.call(index, batch), store).hidden).split(1)
    return found
