"""Judges an execution provider by an engine's check graph, before it is trusted with the engine.

Operators that are right one by one can be wrong together: a length that is computed on the device and read by the host,
a default that is not overridden. So what is executed is a decoder, the engine's own with fewer layers, through the same
caches, bindings and calls as the engine's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from l4export.engine.check_decoder import check_decoder
from l4export.engine.check_record import CheckRecord, read_record
from l4export.engine.manifest import CheckGraph, Manifest
from l4export.errors import EnvironmentLacks, InputError
from l4export.runtimes.cache.kv_cache import KVCache
from l4export.runtimes.images.image_features import ImageFeatures
from l4export.runtimes.images.processor import ProcessedImages
from l4export.runtimes.onnxruntime.verdicts import has_passed, keep_pass
from l4export.runtimes.session import Session

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["ACCEPTED", "Execution", "Executor", "capacity", "check_composition", "feed", "seeded_images", "trust"]

ACCEPTED = {False: 1e-2, True: 3e-2}
"""Of the largest |logit|, where the CPU rounded activations and where it did not. What the CPU gives departs from
PyTorch in float32 by 1.3e-3 of it, and by 1.2e-2 where it rounds (the worst of 18 small engines, whole logits of two
layers); what an H200 gave departed by 1e-3. Tokens are chosen so that no router is near a tie. Weights in another
order, another rotation, norm or mask, or left-over memory change logits by a tenth of the largest and more."""

_REMEDY = "use another version of onnxruntime-gpu or of the driver"

_NOTHING = float(np.finfo(np.float16).smallest_normal)
"""Logits that are no larger count as this large, so that zeros may be compared with zeros."""


class Execution(Protocol):
    """A loaded graph, and the caches of sessions on it."""

    inference: onnxruntime.InferenceSession

    def new_cache(self, manifest: Manifest, batch: int, capacity: int) -> KVCache:
        """An empty cache, as `l4export.runtimes.engine.Engine.new_cache`."""


@dataclass(frozen=True)
class Executor:
    """What is judged.

    Attributes:
        provider: ONNX Runtime's name of the execution provider.
        open_graph: Loads a graph of the engine on it; with a path, a profile is written to a file that begins so.
    """

    provider: str
    open_graph: Callable[[CheckGraph, Path | None], Execution]


def trust(directory: Path, manifest: Manifest, executor: Executor, installation: Mapping[str, str]) -> None:
    """Check an engine's composition, unless it has passed on this installation; raises as `check_composition`.

    `installation` names all else that decides the numbers: card, driver, packages. Failures are not kept: what failed
    may be repaired.
    """
    key = {"engine": manifest.sha256, "provider": executor.provider, **installation}
    if not has_passed(key):
        check_composition(directory, manifest, executor)
        keep_pass(key)


def check_composition(directory: Path, manifest: Manifest, executor: Executor) -> float:
    """Execute the check graph and compare its logits with those that a CPU gave when the engine was built.

    Returns:
        The largest difference, as a part of the largest |logit|.

    Raises:
        EnvironmentLacks: the provider computes something else, or has not executed a fused operator itself.
        InputError: an engine without a check graph, or with a damaged one.
    """
    check = manifest.check
    if check is None:
        raise InputError(f"{directory}: has no check graph, by which a GPU is judged; build the engine again")
    record = read_record(directory / check.record, check, check_decoder(manifest, check))
    with tempfile.TemporaryDirectory() as folder:
        traced = executor.open_graph(check, Path(folder) / "check")
        logits = _logits(directory, manifest, executor.provider, traced, record)
        _check_placement(directory, check, executor.provider, _executed(traced.inference))
    del traced  # or the card would hold these layers twice
    worst = _worst(directory, check, executor.provider, record, logits)
    # once more without a trace, under which nothing is recorded and repeated as steps of decoding are
    logits = _logits(directory, manifest, executor.provider, executor.open_graph(check, None), record)
    return max(worst, _worst(directory, check, executor.provider, record, logits))


def _logits(
    directory: Path, manifest: Manifest, provider: str, execution: Execution, record: CheckRecord
) -> NDArray[np.float32]:
    """What the check graph gives, as `feed`."""
    check = manifest.check
    assert check is not None
    decoder = check_decoder(manifest, check)
    features = seeded_images(record.features)
    session = Session(execution.new_cache, decoder, 1, capacity(manifest, check), check.start, features)
    try:
        return feed(session, check, record.ids)
    except InputError as error:
        raise EnvironmentLacks(
            f"{directory}: {provider} does not execute the check graph: {error}; {_REMEDY}"
        ) from error


def _worst(
    directory: Path, check: CheckGraph, provider: str, record: CheckRecord, logits: NDArray[np.float32]
) -> float:
    """The largest difference; raises EnvironmentLacks where it is not accepted."""
    differences = _differences(check, record, CheckRecord.of(check, record.ids, logits, record.columns))
    if not (differences <= ACCEPTED[check.rounded]).all():
        at = int(np.argmax(np.nan_to_num(differences, nan=np.inf)))
        raise EnvironmentLacks(
            f"{directory}: {provider} computes the layers {', '.join(map(str, check.layers))} differently "
            f"from the CPU that built the engine, by {differences[at]:.2g} of the largest logit at position "
            f"{_position(check, at)}; {_REMEDY}"
        )
    return float(differences.max())


def capacity(manifest: Manifest, check: CheckGraph) -> int:
    """Slots of the check's caches: more than it fills, where the context allows it, as in most sessions."""
    return min(manifest.max_context, 2 * sum(check.calls))


def seeded_images(features: NDArray[np.float16] | None) -> ImageFeatures | None:
    """A tower that sees the number of an image in its pixels, and gives the features [images, rows, D] of that one."""
    return None if features is None else ImageFeatures(lambda tiles: features[int(tiles.flat[0])].copy())


def feed(session: Session, check: CheckGraph, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Append the tokens call by call; float32 [p, V], every token's logits of the first call, then one of each."""
    pieces, shown, logits = np.split(ids, np.cumsum(check.calls)[:-1]), 0, []
    for number, piece in enumerate(pieces):
        images = _images(session.manifest, piece, shown)
        shown += len(images or ())
        logits.append(session.append(piece, last_only=number > 0, images=images)[0])
    return np.concatenate(logits)


def _images(decoder: Manifest, ids: NDArray[np.int32], first: int) -> ProcessedImages | None:
    """The images whose tokens are among `ids`, numbered from `first` on; None without any."""
    vision = decoder.vision
    if vision is None or not (rows := int(np.count_nonzero(ids == vision.image_token_id))):
        return None
    numbers = range(first, first + rows // vision.rows_per_tile)
    side = vision.image_size
    tiles = np.stack([np.full((3, side, side), number, np.float32) for number in numbers])
    return ProcessedImages(tiles, ((1, 1),) * len(numbers), tuple(map(str, numbers)), vision.rows_per_tile)


def _differences(check: CheckGraph, expected: CheckRecord, got: CheckRecord) -> NDArray[np.float64]:
    """At each position the largest |difference|, as a part of the largest |logit|; NaN where one is not finite."""
    scale = max(np.abs(expected.sampled).max(), np.abs(expected.whole).max(), _NOTHING)
    with np.errstate(invalid="ignore", over="ignore"):
        found = np.abs(got.sampled - expected.sampled).max(axis=1)
        ends = np.abs(got.whole - expected.whole).max(axis=1)
        for at, difference in zip((check.calls[0] - 1, -1), ends, strict=True):
            found[at] = np.maximum(found[at], difference)
        return np.asarray(found / scale, dtype=np.float64)


def _position(check: CheckGraph, index: int) -> int:
    """The position of the token whose logits are those of that index."""
    later = index - check.calls[0] + 1
    return check.start + (index if later < 0 else sum(check.calls[: later + 1]) - 1)


@dataclass(frozen=True)
class _Node:
    """A node that was executed: its name, its operator and the provider that executed it."""

    name: str
    operator: str
    provider: str


def _executed(inference: onnxruntime.InferenceSession) -> list[_Node]:
    """Every node that a session with a profile has executed; ends the profile."""
    events: list[dict[str, Any]] = json.loads(Path(inference.end_profiling()).read_text(encoding="utf-8"))
    suffix = "_kernel_time"
    return [
        _Node(event["name"].removesuffix(suffix), event["args"].get("op_name", ""), event["args"].get("provider", ""))
        for event in events
        if event.get("cat") == "Node" and event.get("name", "").endswith(suffix)
    ]


def _check_placement(directory: Path, check: CheckGraph, provider: str, nodes: Sequence[_Node]) -> None:
    """ONNX Runtime gives nodes that a provider has no kernel for to the CPU, and says nothing.

    Raises:
        EnvironmentLacks: a fused operator was executed by another provider, or not at all.
    """
    for node in nodes:
        if node.operator in check.operators and node.provider != provider:
            raise EnvironmentLacks(
                f"{directory}: {node.operator} {node.name} is executed by {node.provider} instead of {provider}; "
                f"{_REMEDY}"
            )
    if missing := set(check.operators) - {node.operator for node in nodes}:
        raise EnvironmentLacks(f"{directory}: {provider} has executed no {', '.join(sorted(missing))}; {_REMEDY}")
