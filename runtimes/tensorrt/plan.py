"""The binding plan of a TensorRT engine, and whether an engine is the one that was planned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from l4export.engine.manifest import Manifest
from l4export.errors import InputError
from l4export.runtimes.cache.binding_plan import BindingPlan, Tensor, plan_bindings

__all__ = ["Reported", "departures", "tensorrt_plan"]

Range = tuple[tuple[int, ...], tuple[int, ...]]
"""The least and the largest shape of an input in a profile; of a scalar, its least and its largest value."""

_VALUES: Range = (0,), (1,)
"""Of `logits_to_keep`, the one scalar."""


@dataclass(frozen=True)
class Reported:
    """What an engine says of one of its inputs and outputs.

    Attributes:
        dtype: NumPy's name of it.
        shape: -1 where it differs from call to call.
        is_output: Whether it is written.
        on_host: Whether the engine reads it from the host's memory.
        ranges: Of an input, one for each optimisation profile.
        shares: Of an output, the input whose memory it takes; None where it has its own.
    """

    dtype: str
    shape: tuple[int, ...]
    is_output: bool
    on_host: bool
    ranges: tuple[Range, ...]
    shares: str | None


def tensorrt_plan(manifest: Manifest) -> BindingPlan:
    """What a session binds: everything on the device, but for scalars, which decide shapes and are read by the host."""
    profiles = [profile["tokens"] for profile in manifest.decoder.profiles]
    return plan_bindings(manifest, profiles, lambda told: not told.shape)


def departures(plan: BindingPlan, part: int, reported: Mapping[str, Reported]) -> list[str]:
    """The differences between the engine of a part and the plan, in words; none if it is the one that was planned."""
    names = {tensor.name for tensor in plan.parts[part]}
    found = [f"{name} is {'missing' if name in names else 'not planned'}" for name in sorted(names ^ set(reported))]
    for tensor in plan.parts[part]:
        if tensor.name not in reported:
            continue
        told, wanted = dataclasses.asdict(reported[tensor.name]), dataclasses.asdict(_expected(plan, tensor))
        if _fits(wanted["shape"], told["shape"]):
            told["shape"] = wanted["shape"]
        found += [
            f"{tensor.name}: {key} {told[key]}, planned {wanted[key]}" for key in wanted if told[key] != wanted[key]
        ]
    return found


def _fits(wanted: tuple[int, ...], told: tuple[int, ...]) -> bool:
    """A dimension that differs from call to call may be reported as a number: ranges say what it can be."""
    return len(wanted) == len(told) and all(want in (-1, dim) for want, dim in zip(wanted, told, strict=True))


def _expected(plan: BindingPlan, tensor: Tensor) -> Reported:
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in tensor.shape)
    ranges = () if tensor.is_output else tuple(_range(plan, tensor, index) for index in range(len(plan.profiles)))
    shares = f"past_key_values.{tensor.cache}" if tensor.is_output and tensor.cache else None
    return Reported(tensor.dtype.name, shape, tensor.is_output, tensor.on_host, ranges, shares)


def _range(plan: BindingPlan, tensor: Tensor, profile: int) -> Range:
    if not tensor.shape:
        return _VALUES
    least, _, most = plan.profiles[profile]
    try:
        low, high = tensor.shape_in({**_sizes(least), "image_tokens": 0}), tensor.shape_in(_sizes(most))
    except KeyError as error:
        raise InputError(f"{tensor.name} has no fixed number of slots; build the engine again") from error
    return low, high


def _sizes(tokens: int) -> dict[str, int]:
    """Of one row whose tokens are all of images, without the slots of caches: TensorRT's are numbers."""
    return {"batch": 1, "batch_or_1": 1, "sequence": tokens, "total": tokens, "image_tokens": tokens}
