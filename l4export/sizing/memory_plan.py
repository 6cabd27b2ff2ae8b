"""Which combinations of weights, KV layout and KV dtype fit a device, and which of them to choose."""

from __future__ import annotations

import bisect
import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l4export.checkpoint import read_config, read_vision_config
from l4export.compiler.options import BuildOptions, check_options
from l4export.compiler.plan import PREFILL_TOKENS
from l4export.engine.gpu_memory import GpuEngine, gpu_memory
from l4export.engine.kv_cache import kv_bytes
from l4export.errors import InputError
from l4export.model.config import ModelConfig
from l4export.model.tensors import parameter_count
from l4export.model.vision_config import VisionConfig
from l4export.sizing.combinations import Combination, combinations
from l4export.sizing.devices import device_memory, device_target
from l4export.sizing.engine_policies import FLOAT_WEIGHTS, EnginePolicies, engine_policies
from l4export.sizing.engine_size import EngineSize, EngineSizes
from l4export.sizing.vision_need import VisionNeed, vision_facts, vision_need
from l4export.sizing.working_memory import working_bytes

__all__ = ["MemoryPlan", "Need", "plan", "plan_memory"]

_PAGE = 4096
"""What a constant may cost beyond its bytes, because data files place tensors at multiples of this."""


@dataclass(frozen=True)
class Need:
    """The bytes that one combination needs for `context` tokens in each row."""

    combination: Combination
    context: int
    weights: int
    kv: int
    working: int
    max_context: int | None
    """The largest context, up to the model's limit, that fits the device. 0 if none does; None without a device."""
    vision: VisionNeed | None = None
    """What the vision tower takes; None where there is none."""

    @property
    def total(self) -> int:
        """The bytes of weights, KV cache, working memory and vision tower, together."""
        return self.least + self.kv

    @property
    def least(self) -> int:
        """The same without a KV cache."""
        return self.weights + self.working + (self.vision.total if self.vision else 0)


@dataclass(frozen=True)
class MemoryPlan:
    """What every combination needs, and which one to choose.

    `device_bytes` is None if no device was named, and `context` is None if no context was asked for. `choice` is None
    without a device, and if no combination fits one token. `refused` has the combinations that cannot be built for this
    model, with the reasons. `keeps_codes` says whether `--quant none` keeps codes of the checkpoint, and `notes` what
    becomes of these.
    """

    config: ModelConfig
    device_bytes: int | None
    context: int | None
    batch: int
    needs: tuple[Need, ...]
    choice: Need | None
    refused: dict[Combination, str]
    vision: VisionConfig | None = None
    keeps_codes: bool = False
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """The number of parameters of the model."""
        return parameter_count(self.config).total

    @property
    def fits(self) -> bool:
        """Whether some combination fits the device with the context that was asked for.

        Without a device, whether any can be built.
        """
        if self.device_bytes is None:
            return bool(self.needs)
        return self.choice is not None and (self.context is None or self.choice.total <= self.device_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan for a JSON document, with all sizes in bytes."""
        config = self.config
        return {
            "device_bytes": self.device_bytes,
            "batch": self.batch,
            "context": self.context,
            "parameters": self.parameters,
            "max_position_embeddings": config.max_position_embeddings,
            "attention_chunk_size": config.attention_chunk_size,
            "chunked_layers": sum(config.chunked_layers),
            "layers": config.num_hidden_layers,
            "vision": None if self.vision is None else vision_facts(self.vision, config.hidden_size),
            "notes": list(self.notes),
            "combinations": [self._record(need) for need in self.needs],
            "refused": [{**dataclasses.asdict(each), "reason": why} for each, why in self.refused.items()],
            "choice": None if self.choice is None else self._record(self.choice),
        }

    def _record(self, need: Need) -> dict[str, Any]:
        return {
            **dataclasses.asdict(need.combination),
            "loss_percent": need.combination.loss,
            "context": need.context,
            "weights_bytes": need.weights,
            "kv_bytes": need.kv,
            "working_bytes": need.working,
            "vision": None if need.vision is None else need.vision.to_dict(),
            "total_bytes": need.total,
            "fits": None if self.device_bytes is None else need.total <= self.device_bytes,
            "max_context": need.max_context,
        }


def plan(
    checkpoint: str | os.PathLike[str],
    device: str | int | None = None,
    context: int | None = None,
    batch: int = 1,
    vision: str = "auto",
    vision_dtype: str | None = None,
) -> MemoryPlan:
    """Find the combinations of weights, KV layout and KV dtype that fit a device, from a model's config alone.

    Args:
        checkpoint: A checkpoint directory or a config.json. No weights are read, and none need to exist.
        device: A name in `l4export.sizing.devices.DEVICES`, such as "h100", or the memory of a device in bytes.
        context: The number of tokens that each row must hold; None means as many as fit.
        batch: The number of rows.
        vision: `auto` counts the vision tower that a config describes, `none` the text model alone.
        vision_dtype: Float type of the tower; None: that of the text model.

    Raises:
        InputError: there is no config, or it has another architecture; the device is unknown; the model does not take
            the context; the tower cannot be built so.
        StorageError: reading failed.
    """
    memory = None if device is None else device_memory(device)
    target = "ort-cpu" if device is None else device_target(device)
    check_options(BuildOptions(target=target, vision=vision, vision_dtype=vision_dtype))
    config, tower = read_config(Path(checkpoint)), read_vision_config(Path(checkpoint)) if vision == "auto" else None
    if vision_dtype is not None and tower is None:
        raise InputError(f"--vision-dtype: {checkpoint} has no vision_config; leave it out")
    policies = engine_policies(Path(checkpoint), target)
    return plan_memory(config, memory, context, batch, target, tower, vision_dtype, policies)


def plan_memory(
    config: ModelConfig,
    device_bytes: int | None = None,
    context: int | None = None,
    batch: int = 1,
    target: str = "ort-cpu",
    vision: VisionConfig | None = None,
    vision_dtype: str | None = None,
    policies: EnginePolicies = FLOAT_WEIGHTS,
) -> MemoryPlan:
    """Plan for `batch` rows of `context` tokens each, with engines of `target`: `ort-cpu` or `ort-cuda`.

    With `vision` engines have a tower, of `vision_dtype` or of the type that the decoder computes in. `policies`
    say what of a quantised checkpoint is kept.

    Without `context`, the need of each combination is that of the largest context that fits (of one token if none
    does), or of the model's limit if there is no device.

    The choice is the combination with the smallest loss among those that fit `context` (by default the model's limit),
    and the smallest among equals. If none fits, it is the one that reaches the longest context. There is no choice
    without a device, or if no combination fits one token.

    Raises:
        InputError: the model does not take the context.
    """
    limit = config.max_position_embeddings
    if context is not None and not 1 <= context <= limit:
        raise InputError(f"--context {context}: this model takes 1 to {limit} tokens")
    planner = _Planner(config, device_bytes, batch, target, vision, vision_dtype, policies)
    needs: list[Need] = []
    refused: dict[Combination, str] = {}
    for combination in combinations(config, target):
        try:
            needs.append(planner.need(combination, context))
        except InputError as error:
            refused[combination] = str(error)
    return MemoryPlan(
        config=config,
        device_bytes=device_bytes,
        context=context,
        batch=batch,
        needs=tuple(needs),
        choice=_choice(needs, context or limit, device_bytes),
        refused=refused,
        vision=vision,
        keeps_codes=policies.keep_codes,
        notes=policies.notes,
    )


def _choice(needs: list[Need], context: int, device_bytes: int | None) -> Need | None:
    if device_bytes is None:
        return None
    if fitting := [need for need in needs if (need.max_context or 0) >= context]:
        return min(fitting, key=lambda need: (need.combination.loss, need.total))
    reaching = [need for need in needs if need.max_context]
    return max(reaching, key=lambda need: (need.max_context, -need.combination.loss), default=None)


class _Planner:
    def __init__(
        self,
        config: ModelConfig,
        device_bytes: int | None,
        batch: int,
        target: str,
        vision: VisionConfig | None,
        vision_dtype: str | None,
        policies: EnginePolicies,
    ) -> None:
        self.config, self.device_bytes, self.batch = config, device_bytes, batch
        self.vision, self.vision_dtype = vision, vision_dtype
        self.policy_of = policies.policy_of
        self.sizes = EngineSizes(config, target, vision.image_token_id if vision else None, self.policy_of)

    def need(self, combination: Combination, context: int | None) -> Need:
        vision = self.vision_need(combination)
        room = None if self.device_bytes is None else self.device_bytes - (vision.total if vision else 0)
        largest = None if room is None else self.largest_context(combination, room)
        if context is None:
            context = self.config.max_position_embeddings if largest is None else max(largest, 1)
        size = self.size(combination, context)
        parts = (size.data, *self.beside(combination, size, context))
        if largest is not None and room is not None and sum(parts) <= room:
            largest = max(largest, context)  # the search may have stopped a little short
        return Need(combination, context, *parts, largest, vision)

    def vision_need(self, c: Combination) -> VisionNeed | None:
        if self.vision is None:
            return None
        return vision_need(self.vision, self.config.hidden_size, c.target, self.vision_dtype or c.dtype, c.dtype)

    def largest_context(self, combination: Combination, device_bytes: int) -> int:
        """Find the largest context that fits. The result may be too small, by at most a page for each constant.

        Only rotation tables make data files grow with the context. Without tables the answer is too large, and with
        the tables of that answer it is too small. Between the two, tables grow linearly or not at all.
        """
        size = self.size(combination, 1)

        def fitting(tables: Callable[[int], int]) -> int:
            contexts = range(1, self.config.max_position_embeddings + 1)

            def key(n: int) -> int:
                return size.data + tables(n) + sum(self.beside(combination, size, n))

            return bisect.bisect_right(contexts, device_bytes, key=key)

        high = fitting(lambda _: 0)
        most = self.tables(combination, high)
        low = fitting(lambda _: most)
        least = self.tables(combination, low)
        if low == high or least == most:
            return low
        found = fitting(lambda n: least + (most - least) * max(0, n - low) // (high - low))
        fits = size.data + self.tables(combination, found) + sum(self.beside(combination, size, found)) <= device_bytes
        return found if fits else low

    def size(self, c: Combination, context: int) -> EngineSize:
        return self.sizes.size(c.quant, c.dtype, c.kv_layout, c.kv_dtype, context)

    def tables(self, c: Combination, context: int) -> int:
        """Return the most bytes by which data files grow for the constants of an engine for `context` tokens."""
        made = self.sizes.constants(c.dtype, c.kv_layout, c.kv_dtype, context) if context else ()
        return sum(nbytes + _PAGE for nbytes in made)

    def beside(self, c: Combination, size: EngineSize, context: int) -> tuple[int, int]:
        """Return the bytes of KV cache and working memory for `context` tokens a row."""
        if c.target == "ort-cuda":
            quantised = self.policy_of(c.quant, c.dtype) is not None
            engine = GpuEngine(self.config, size.data, quantised, c.kv_layout, c.kv_dtype, PREFILL_TOKENS)
            need = gpu_memory(engine, context, self.batch)
            return need.caches, need.working
        return (
            kv_bytes(self.config, c.kv_layout, c.kv_dtype, context, self.batch),
            working_bytes(self.config, size, c.kv_layout, c.kv_dtype, context, self.batch),
        )
