"""Calibrating one layer: its weights rounded for the inputs that they get from the layers before, rounded already.

Within the layer the order is that of the data: q, k and v for the normed residual stream, o for what attention with the
rounded q, k and v makes, gate and up, and down for what the rounded gate and up make. So each matrix can make good what
the ones before have done to its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from l4export.errors import InputError
from l4export.quantization.gptq import QuantizedMatrix, gptq
from l4export.quantization.schemes import Scheme
from l4export.streamed_layer import StreamedLayer, StreamedMoe
from l4export.streamed_reference import StreamedReference

__all__ = ["LEAST_TOKENS", "MatrixRecord", "calibrate_layer"]

LEAST_TOKENS = 64
"""An expert that fewer tokens chose is calibrated on all the layer's tokens."""

_ROWS = 4096
"""Rows whose second moments are summed in float32 before they are added up in float64."""


@dataclass(frozen=True)
class MatrixRecord:
    """How the calibration of one matrix went.

    `tokens` is how many it saw; `damping` what its moments needed. `error` is |W X - W' X| / |W X|, and `plain_error`
    the same when rounded to nearest, both over the calibration's tokens and at most 256 rows. `fallback` says that too
    few tokens chose this expert, and all the layer's were taken.
    """

    name: str
    expert: int | None
    tokens: int
    damping: float
    error: float
    plain_error: float
    fallback: bool = False


Keep = Callable[[str, "int | None", QuantizedMatrix], None]
"""(name within the layer, expert or None, matrix): takes what was quantised."""


def calibrate_layer(
    reference: StreamedReference,
    index: int,
    schemes: Mapping[str, Scheme],
    hidden: Sequence[torch.Tensor],
    keep: Keep,
) -> list[MatrixRecord]:
    """Quantise layer `index` for `hidden`, the residual streams [1, T, D] before it, one for each sequence.

    They are replaced, in place, by those behind the quantised layer. `schemes` says by name within the layer what
    becomes of its matrices, in integers; they are given to `keep`, and others stay float. Returns how each went.

    Raises:
        InputError: a weight that the scheme cannot hold.
    """
    with torch.inference_mode():
        return _Calibration(reference, index, schemes, hidden, keep).run()


class _Calibration:
    def __init__(
        self,
        reference: StreamedReference,
        index: int,
        schemes: Mapping[str, Scheme],
        hidden: Sequence[torch.Tensor],
        keep: Keep,
    ) -> None:
        self.reference, self.index, self.schemes, self.hidden, self.keep = reference, index, schemes, hidden, keep
        self.layer: StreamedLayer = reference.layer(index)
        self.records: list[MatrixRecord] = []

    def run(self) -> list[MatrixRecord]:
        """Attention, then feed-forward."""
        module = self.layer.module
        attention = module.self_attn
        normed = (module.input_layernorm(x) for x in self.hidden)
        self.linear({f"self_attn.{name}_proj.weight": getattr(attention, f"{name}_proj") for name in "qkv"}, normed)
        self.linear({"self_attn.o_proj.weight": attention.o_proj}, self.attended())
        for x in self.hidden:
            x.add_(self.attend(x))
        if isinstance(module.feed_forward, StreamedMoe):
            self.moe(module.feed_forward)
        else:
            self.mlp("feed_forward", module.feed_forward)
            for x in self.hidden:
                x.add_(module.feed_forward(module.post_attention_layernorm(x)))
        return self.records

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """What attention adds to x [1, T, D]."""
        module = self.layer.module
        call = self.reference.call(self.index, x)
        return module.self_attn(module.input_layernorm(x), past_key_values=None, **call)[0]

    def attended(self) -> Iterator[torch.Tensor]:
        """The inputs of o_proj [1, T, H * d]."""
        caught: list[torch.Tensor] = []
        hook = self.layer.module.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        for x in self.hidden:
            self.attend(x)
            yield caught.pop()
        hook.remove()

    def rows(self) -> Iterator[torch.Tensor]:
        """The inputs of the feed-forward block [1, T, D]."""
        return (self.layer.module.post_attention_layernorm(x) for x in self.hidden)

    def mlp(self, prefix: str, module: Any) -> None:
        """gate and up, then down for what they make."""
        pair = {f"{prefix}.{name}_proj.weight": getattr(module, f"{name}_proj") for name in ("gate", "up")}
        self.linear(pair, self.rows())
        gated = (module.activation_fn(module.gate_proj(h)) * module.up_proj(h) for h in self.rows())
        self.linear({f"{prefix}.down_proj.weight": module.down_proj}, gated)

    def moe(self, moe: StreamedMoe) -> None:
        """The shared expert, then the routed ones, each for the rows that chose it, scaled as it gets them."""
        self.mlp("feed_forward.shared_expert", moe.shared_expert)
        scores = [moe.router(h.reshape(-1, h.shape[-1]))[0] for h in self.rows()]
        added = [moe.shared_expert(h) for h in self.rows()]
        for expert in range(scores[0].shape[1]):
            chosen = [(score[:, expert] > 0).nonzero()[:, 0] for score in scores]
            inputs = [
                h[0, rows] * score[rows, expert, None]
                for h, rows, score in zip(self.rows(), chosen, scores, strict=True)
            ]
            tokens = sum(map(len, chosen))
            fallback = tokens < LEAST_TOKENS
            seen = inputs
            if fallback:
                seen = [h[0] * score.max(dim=1, keepdim=True)[0] for h, score in zip(self.rows(), scores, strict=True)]
            module = moe.expert(expert)
            self.expert(expert, module, seen, fallback)
            for out, rows, x in zip(added, chosen, inputs, strict=True):
                if len(rows):
                    out[0].index_add_(0, rows, module(x))
        for x, out in zip(self.hidden, added, strict=True):
            x.add_(out)

    def expert(self, expert: int, module: Any, rows: list[torch.Tensor], fallback: bool) -> None:
        """gate_up and down of one routed expert, stored [1, K, N]."""
        name = "feed_forward.experts.{}".format
        kept = {"expert": expert, "fallback": fallback}
        self.matrix(name("gate_up_proj"), module.gate_up_proj[0].T, rows, module.gate_up_proj, **kept)
        halves = (torch.cat(rows) @ module.gate_up_proj[0]).chunk(2, dim=-1)
        self.matrix(
            name("down_proj"), module.down_proj[0].T, [halves[1] * module.act_fn(halves[0])], module.down_proj, **kept
        )

    def linear(self, modules: Mapping[str, Any], inputs: Iterable[torch.Tensor]) -> None:
        """Linear layers that have their inputs in common."""
        if not any(name in self.schemes for name in modules):
            return
        kept, count = second_moments(inputs)
        for name, module in modules.items():
            self.solve(name, module.weight, kept, count, module.weight)

    def matrix(
        self, name: str, weight: torch.Tensor, inputs: list[torch.Tensor], stored: torch.Tensor, **kept: Any
    ) -> None:
        """One matrix by itself."""
        if name in self.schemes:
            self.solve(name, weight, *second_moments(inputs), stored, **kept)

    def solve(
        self,
        name: str,
        weight: torch.Tensor,
        moments: NDArray[np.float64],
        tokens: int,
        stored: torch.Tensor,
        expert: int | None = None,
        fallback: bool = False,
    ) -> None:
        """Quantise one matrix [N, K], note how it went, and let the layer go on with what came out."""
        scheme = self.schemes.get(name)
        if scheme is None:
            return
        original = np.ascontiguousarray(weight.numpy())
        try:
            matrix, damping = gptq(original, moments, scheme)
        except ValueError as error:
            raise InputError(f"model.layers.{self.index}.{name}: {error}; choose another --dtype") from error
        values, plain = matrix.values, QuantizedMatrix.rounded(original, scheme).values
        found, nearest = (relative_error(original, other, moments) for other in (values, plain))
        self.records.append(MatrixRecord(name, expert, tokens, damping, found, nearest, fallback))
        self.keep(name, expert, matrix)
        result = torch.from_numpy(values)
        stored.copy_(result if stored.dim() == 2 else result.T[None])


def second_moments(inputs: Iterable[torch.Tensor]) -> tuple[NDArray[np.float64], int]:
    """2 X X' of rows [..., K], float64 [K, K], and how many rows there were."""
    total: NDArray[np.float64] | None = None
    count = 0
    for x in inputs:
        for rows in x.reshape(-1, x.shape[-1]).split(_ROWS):
            product = (rows.T @ rows).numpy().astype(np.float64)
            total = product if total is None else np.add(total, product, out=total)
            count += len(rows)
    assert total is not None
    return 2 * total, count


def relative_error(weight: NDArray[np.float32], other: NDArray[np.float32], moments: NDArray[np.float64]) -> float:
    """|W X - W' X| / |W X| from the moments of X, over at most 256 rows of W; 0 where W X is 0."""
    step = -(-len(weight) // 256)
    rows, difference = weight[::step].astype(np.float64), weight[::step].astype(np.float64) - other[::step]
    whole = float(((rows @ moments) * rows).sum())
    return float(np.sqrt(max(0.0, float(((difference @ moments) * difference).sum())) / whole)) if whole else 0.0
