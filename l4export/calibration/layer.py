"""Calibrating one layer: its weights rounded for the inputs that they get from the layers before, rounded already.

Two streams run side by side, as the quantised model has it and as the float model has it. Each matrix is rounded so
that its outputs on the first come near those of the float weights on the second (`l4export.calibration.moments`).
Within the layer the order is that of the data: q, k and v for the normed residual stream, o for what attention with the
rounded q, k and v makes, gate and up, and down for what the rounded gate and up make. So each matrix can make good what
the ones before have done to its inputs.

A token that takes another expert is damaged more than by anything else. Therefore the router, which stays float, is
fitted to its inputs in the same way, and matrices that write to the residual stream are rounded with regard to the
routers that will read it (`routing_feedback`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from l4export.calibration.moments import Moments, relative_error
from l4export.errors import InputError
from l4export.model.weight_names import ROUTER
from l4export.quantization.gptq import QuantizedMatrix, gptq, inverse_factor
from l4export.quantization.schemes import Scheme
from l4export.reference.streamed_layer import StreamedMoe
from l4export.reference.streamed_model import StreamedReference

__all__ = ["LEAST_TOKENS", "MatrixRecord", "calibrate_layer", "routing_feedback"]

LEAST_TOKENS = 64
"""An expert that fewer tokens chose is calibrated on all the layer's tokens."""

_ROUTING = 3.0
"""How much an error of the residual stream costs in the directions that routers read, compared with 1 for any other
direction; in shares of the trace. Of 1, 3 and 4 on the trained example 3 gave the smallest KL."""


@dataclass(frozen=True)
class MatrixRecord:
    """How the calibration of one matrix went.

    `tokens` is how many it saw; `damping` what its moments needed. `error` is |W* X - W' X| / |W* X|, where W* X is
    what is aimed at, and `plain_error` the same when rounded to nearest (of a router: when left as it was), both over
    the calibration's tokens and at most 256 rows. `fallback` says that too few tokens chose this expert, and all the
    layer's were taken.
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

Pair = tuple[torch.Tensor, torch.Tensor]
"""The same tensor of both streams: rounded, exact."""

Feedback = NDArray[np.float32] | None


def calibrate_layer(
    reference: StreamedReference,
    index: int,
    schemes: Mapping[str, Scheme],
    hidden: Sequence[torch.Tensor],
    keep: Keep,
    keep_router: Callable[[NDArray[np.float32]], None],
) -> list[MatrixRecord]:
    """Quantise layer `index` for `hidden`, the residual streams [2, T, D] before it, one for each sequence: row 0 as
    the layers before, quantised, have made it, row 1 as the float ones have.

    They are replaced, in place, by those after the layer. `schemes` says by name within the layer what becomes of its
    matrices, in integers; they are given to `keep`, and others stay float, but for the router, which is given to
    `keep_router` in float32 [E, D]. Returns how each went.

    Raises:
        InputError: a weight that the scheme cannot hold.
    """
    with torch.inference_mode():
        return _Calibration(reference, index, schemes, hidden, keep, keep_router).run()


def routing_feedback(reference: StreamedReference, first: int) -> NDArray[np.float32] | None:
    """How errors of the residual stream's features are to be carried on, for matrices that write to it.

    For routers R_j of the layers from number `first` on, read through norms of weights g_j, an error e [D] of the
    stream moves the differences of the logits by P_j e, P_j = (R_j - mean over experts) diag(g_j). With A the sum of
    P_j' P_j it costs e' (I + 3 D A / tr A) e. Returns the factor U, float32 [D, D], U' U the inverse of that matrix
    (`gptq`), or None if no router reads the stream any more.
    """
    d = reference.config.hidden_size
    total = torch.zeros(d, d, dtype=torch.float64)
    for index in range(first, reference.config.num_hidden_layers):
        if reference.config.is_moe(index):
            read = torch.from_numpy(reference.router_rows(index)).double()
            read -= read.mean(0)
            total += read.T @ read
    trace = float(total.trace())
    if not trace:
        return None
    cost = total.mul_(_ROUTING * d / trace)
    cost.diagonal().add_(1.0)
    return inverse_factor(cost.numpy(), np.arange(d), 0.0)[0]


@dataclass(frozen=True)
class _RoutedRows:
    """One sequence before the routed experts: `rows` [T, D] and `scores` [T, E], 0 where an expert was not chosen.

    `asked` [T, E] are the scores of the exact rows for every expert, chosen or not: a rounded row may have taken an
    expert that the exact one did not.
    """

    rows: Pair
    scores: Pair
    asked: torch.Tensor

    @classmethod
    def of(cls, rows: Pair, rounded: Any, exact: Any) -> _RoutedRows:
        """As the routers of both streams choose."""
        x, y = rows
        return cls(rows, (rounded(x)[0], exact(y)[0]), torch.sigmoid(y @ exact.weight.T))

    def chosen(self, expert: int, stream: int) -> torch.Tensor:
        """Which rows of a stream (0: rounded, 1: exact) chose an expert."""
        return (self.scores[stream][:, expert] > 0).nonzero()[:, 0]

    def inputs(self, expert: int) -> Pair:
        """The rows that chose an expert in the rounded stream, scaled by their scores, and the same exact ones."""
        (x, y), at = self.rows, self.chosen(expert, 0)
        return x[at] * self.scores[0][at, expert, None], y[at] * self.asked[at, expert, None]

    def whole(self) -> Pair:
        """All rows, scaled by the best scores that they have."""
        x, y = (h * score.max(dim=1, keepdim=True)[0] for h, score in zip(self.rows, self.scores, strict=True))
        return x, y

    def add_expert(self, expert: int, modules: tuple[Any, Any], out: Pair) -> None:
        """Add to `out` [T, D] what an expert, rounded and exact, makes of the rows that chose it."""
        for stream, (rows, scores, module, total) in enumerate(zip(self.rows, self.scores, modules, out, strict=True)):
            if len(at := self.chosen(expert, stream)):
                total.index_add_(0, at, module(rows[at] * scores[at, expert, None]))


class _Calibration:
    def __init__(
        self,
        reference: StreamedReference,
        index: int,
        schemes: Mapping[str, Scheme],
        hidden: Sequence[torch.Tensor],
        keep: Keep,
        keep_router: Callable[[NDArray[np.float32]], None],
    ) -> None:
        self.reference, self.index, self.schemes, self.hidden = reference, index, schemes, hidden
        self.keep, self.keep_router = keep, keep_router
        self.rounded: Any = reference.layer(index).module
        self.exact: Any = reference.layer(index).module
        self.records: list[MatrixRecord] = []

    def run(self) -> list[MatrixRecord]:
        """Attention, then feed-forward."""
        names = {f"self_attn.{name}_proj.weight": f"{name}_proj" for name in "qkv"}
        normed = (self.both(lambda module, x: module.input_layernorm(x), pair) for pair in self.hidden)
        self.linear({name: getattr(self.rounded.self_attn, short) for name, short in names.items()}, normed)
        feedback = routing_feedback(self.reference, self.index)
        self.linear({"self_attn.o_proj.weight": self.rounded.self_attn.o_proj}, self.attended(), feedback)
        for pair in self.hidden:
            pair.add_(torch.cat(self.both(self.attend, pair)))
        feedback = routing_feedback(self.reference, self.index + 1)
        if isinstance(self.rounded.feed_forward, StreamedMoe):
            self.moe(feedback)
        else:
            mlp = self.rounded.feed_forward, self.exact.feed_forward
            self.mlp("feed_forward", *mlp, feedback)
            for pair, (x, y) in zip(self.hidden, self.rows(), strict=True):
                pair.add_(torch.cat([mlp[0](x), mlp[1](y)]))
        return self.records

    def both(self, evaluate: Callable[[Any, torch.Tensor], torch.Tensor], pair: torch.Tensor) -> Pair:
        """`evaluate(layer, x)` of the rounded layer on pair[0] and of the exact one on pair[1], [1, ...] each."""
        return evaluate(self.rounded, pair[:1]), evaluate(self.exact, pair[1:])

    def attend(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """What attention adds to x [1, T, D]."""
        call = self.reference.call(self.index, x)
        added: torch.Tensor = module.self_attn(module.input_layernorm(x), past_key_values=None, **call)[0]
        return added

    def attended(self) -> Iterator[Pair]:
        """The inputs of o_proj [1, T, H * d]."""
        caught: list[torch.Tensor] = []
        projections = [module.self_attn.o_proj for module in (self.rounded, self.exact)]
        hooks = [of.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0])) for of in projections]
        for pair in self.hidden:
            self.both(self.attend, pair)
            x, y = caught
            caught.clear()
            yield x, y
        for hook in hooks:
            hook.remove()

    def rows(self) -> Iterator[Pair]:
        """The inputs of the feed-forward block [1, T, D]."""
        return (self.both(lambda module, x: module.post_attention_layernorm(x), pair) for pair in self.hidden)

    def mlp(self, prefix: str, rounded: Any, exact: Any, feedback: Feedback) -> None:
        """gate and up, then down for what they make."""
        pair = {f"{prefix}.{name}_proj.weight": getattr(rounded, f"{name}_proj") for name in ("gate", "up")}
        self.linear(pair, self.rows())

        def gated(module: Any, h: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = module.activation_fn(module.gate_proj(h)) * module.up_proj(h)
            return made

        made = ((gated(rounded, x), gated(exact, y)) for x, y in self.rows())
        self.linear({f"{prefix}.down_proj.weight": rounded.down_proj}, made, feedback)

    def moe(self, feedback: Feedback) -> None:
        """The router, the shared expert, then the routed ones, each for the rows that chose it."""
        rounded, exact = self.rounded.feed_forward, self.exact.feed_forward
        self.fit_router(rounded.router)
        self.mlp("feed_forward.shared_expert", rounded.shared_expert, exact.shared_expert, feedback)
        routed = [_RoutedRows.of((x[0], y[0]), rounded.router, exact.router) for x, y in self.rows()]
        added = [(rounded.shared_expert(x), exact.shared_expert(y)) for x, y in (each.rows for each in routed)]
        for expert in range(exact.router.weight.shape[0]):
            inputs = [each.inputs(expert) for each in routed]
            fallback = sum(len(x) for x, _ in inputs) < LEAST_TOKENS
            seen = [each.whole() for each in routed] if fallback else inputs
            modules = rounded.expert(expert), exact.expert(expert)
            self.expert(expert, modules, seen, fallback, feedback)
            for out, each in zip(added, routed, strict=True):
                each.add_expert(expert, modules, out)
        for pair, out in zip(self.hidden, added, strict=True):
            pair.add_(torch.stack(out))

    def fit_router(self, router: Any) -> None:
        """The router's float weights for its inputs as they have become."""
        moments, original = Moments(self.rows()), np.ascontiguousarray(router.weight.numpy())
        fitted = moments.aim(original)
        self.records.append(
            MatrixRecord(ROUTER, None, moments.tokens, 0.0, 0.0, relative_error(fitted, original, moments.inputs))
        )
        self.keep_router(fitted)
        router.weight.copy_(torch.from_numpy(fitted))

    def expert(
        self, expert: int, modules: tuple[Any, Any], rows: list[Pair], fallback: bool, feedback: Feedback
    ) -> None:
        """gate_up and down of one routed expert, stored [1, K, N], rounded and exact."""
        name, stored = "feed_forward.experts.{}".format, modules[0]
        kept = {"expert": expert, "fallback": fallback}
        self.matrix(name("gate_up_proj"), stored.gate_up_proj, rows, None, **kept)

        def gated(module: Any, x: torch.Tensor) -> torch.Tensor:
            gate, up = (x @ module.gate_up_proj[0]).chunk(2, dim=-1)
            made: torch.Tensor = up * module.act_fn(gate)
            return made

        made = ((gated(modules[0], x), gated(modules[1], y)) for x, y in rows)
        self.matrix(name("down_proj"), stored.down_proj, made, feedback, **kept)

    def linear(self, modules: Mapping[str, Any], pairs: Iterable[Pair], feedback: Feedback = None) -> None:
        """Linear layers that have their inputs in common."""
        if not any(name in self.schemes for name in modules):
            return
        moments = Moments(pairs)
        for name, module in modules.items():
            if name in self.schemes:
                self.solve(name, module.weight, moments, feedback)

    def matrix(self, name: str, stored: torch.Tensor, pairs: Iterable[Pair], feedback: Feedback, **kept: Any) -> None:
        """One matrix by itself."""
        if name in self.schemes:
            self.solve(name, stored, Moments(pairs), feedback, **kept)

    def solve(
        self,
        name: str,
        stored: torch.Tensor,
        moments: Moments,
        feedback: Feedback,
        expert: int | None = None,
        fallback: bool = False,
    ) -> None:
        """Quantise one matrix, [N, K] or [1, K, N], note the result, and let the layer continue with it."""
        scheme = self.schemes[name]
        original = np.ascontiguousarray((stored if stored.dim() == 2 else stored[0].T).numpy())
        aimed = moments.aim(original)
        try:
            plain = QuantizedMatrix.rounded(original, scheme).values
            matrix, damping = gptq(aimed, moments.inputs, scheme, feedback=feedback)
        except ValueError as error:
            raise InputError(f"model.layers.{self.index}.{name}: {error}; choose another --dtype") from error
        values = matrix.values
        found, nearest = (relative_error(aimed, other, moments.inputs) for other in (values, plain))
        self.records.append(MatrixRecord(name, expert, moments.tokens, damping, found, nearest, fallback))
        self.keep(name, expert, matrix)
        result = torch.from_numpy(values)
        stored.copy_(result if stored.dim() == 2 else result.T[None])
