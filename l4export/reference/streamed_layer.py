"""One decoder layer of transformers' Llama 4 by itself, with one routed expert at a time in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.models.llama4.modeling_llama4 import (
    Llama4Router,
    Llama4TextDecoderLayer,
    Llama4TextExperts,
    Llama4TextMLP,
)

__all__ = ["Choose", "LayerTaps", "Store", "StreamedLayer", "StreamedMoe"]

Store = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Keys and values [B, K, T, d] -> the keys and values that attention reads. It stands for a cache of fewer bits."""

Choose = Callable[[NDArray[np.float32]], NDArray[np.int64]]
"""Router logits [B * T, E] -> the experts [B * T, k] that are taken."""


@dataclass(frozen=True)
class LayerTaps:
    """The results of a layer for T positions of B sequences.

    `hidden` float32 [B, T, D] is the residual stream after the layer. `keys` and `values` float32 [B, K, T, d] are
    what a cache holds: keys after rotation and norm. `router_logits` is float32 [B, T, E], None in a dense layer.
    """

    hidden: NDArray[np.float32]
    keys: NDArray[np.float32]
    values: NDArray[np.float32]
    router_logits: NDArray[np.float32] | None


class StreamedMoe(torch.nn.Module):  # type: ignore[misc]
    """transformers' `Llama4TextMoe` with its own router, shared expert and experts. An expert is read when rows have
    chosen it, and dropped afterwards: y = shared(h) + sum over chosen e of expert_e(sigmoid(z_e) h).

    `read(e)` gives an expert's `gate_up_proj` [1, D, 2I] and `down_proj` [1, I, D]. transformers evaluates every
    expert on every row, on zeros where it was not chosen, which gives zero: the same sum. `choose`, if it is set, says
    which experts are taken instead of the likeliest.
    """

    choose: Choose | None = None

    def __init__(self, config: Any, read: Callable[[int], Mapping[str, torch.Tensor]]) -> None:
        super().__init__()
        self.router = Llama4Router(config)
        self.shared_expert = Llama4TextMLP(config)
        self.router_logits = torch.empty(0)
        self._single = copy.copy(config)
        self._single.num_local_experts = 1
        self._read = read

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden_states [B, T, D] -> [B * T, D] and the router's logits [B * T, E], which stay in `router_logits`."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        scores, self.router_logits = self.router(rows)
        if self.choose is not None:
            chosen = torch.from_numpy(self.choose(self.router_logits.numpy()))
            taken = torch.sigmoid(self.router_logits.gather(1, chosen))
            scores = torch.zeros_like(scores).scatter_(1, chosen, taken)
        out = self.shared_expert(rows)
        for expert in range(scores.shape[1]):
            chosen = scores[:, expert].nonzero()[:, 0]
            if len(chosen):
                out.index_add_(0, chosen, self.expert(expert)(rows[chosen] * scores[chosen, expert, None]))
        return out, self.router_logits

    def expert(self, expert: int) -> Llama4TextExperts:
        """One routed expert: scaled rows [n, D] -> [n, D]."""
        with torch.device("meta"):
            module = Llama4TextExperts(self._single)
        module.load_state_dict(self._read(expert), assign=True)
        return module


class StreamedLayer:
    """`module` is transformers' `Llama4TextDecoderLayer` number `index` with its weights, float32; in a routed layer
    its `feed_forward` is a `StreamedMoe`.

    `read(name, expert)` gives a tensor of the layer by its name within it; of the two tensors that hold all experts
    only expert number `expert`, as [1, ...].
    """

    def __init__(self, config: Any, index: int, read: Callable[[str, int | None], torch.Tensor]) -> None:
        with torch.device("meta"):
            self.module = Llama4TextDecoderLayer(config, index)
            if self.module.is_moe_layer:
                self.module.feed_forward = StreamedMoe(
                    config,
                    lambda expert: {
                        name: read(f"feed_forward.experts.{name}", expert) for name in ("gate_up_proj", "down_proj")
                    },
                )
        names = list(self.module.state_dict())
        self.module.load_state_dict({name: read(name, None) for name in names}, assign=True)
        self.module.eval()

    def __call__(
        self,
        hidden: torch.Tensor,
        call: Mapping[str, Any],
        store: Store | None = None,
        choose: Choose | None = None,
    ) -> LayerTaps:
        """Run hidden [B, T, D], with the arguments from `StreamedReference.call`, through transformers' own forward.

        Attention reads keys and values as `store` returns them; None: as they are. Experts are those that `choose`
        says; None: the likeliest.
        """
        cache = _Recorder(store)
        if isinstance(self.module.feed_forward, StreamedMoe):
            self.module.feed_forward.choose = choose
        with torch.inference_mode():
            out = self.module(hidden, past_key_values=cache, **call)
        logits = None
        if isinstance(self.module.feed_forward, StreamedMoe):
            logits = self.module.feed_forward.router_logits.reshape(*hidden.shape[:2], -1).numpy()
        return LayerTaps(out.numpy(), cache.keys.numpy(), cache.values.numpy(), logits)


class _Recorder:
    """Takes the place of transformers' cache. It is empty at first and keeps what the layer puts into it."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, store: Store | None) -> None:
        self._store = store

    def get_seq_length(self, layer: int = 0) -> int:
        """Tokens of earlier calls: none."""
        return 0

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, K, T, d] each; nothing came before."""
        self.keys, self.values = (keys, values) if self._store is None else self._store(keys, values)
        return self.keys, self.values
