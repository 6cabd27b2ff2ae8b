"""Calibration of a build: layer after layer, each kept on disk before the next begins.

The work directory holds, for every layer that is done, `layer-00003.codes` (what was found: codes, scales and zero
points, laid out as `CalibrationPlan` says), `layer-00003.json` (a report) and, of the last one, `layer-00003.hidden`
(the residual streams after it, float32 [tokens, D]), and a journal with the CRC-32 of each. Emission then reads the
codes from there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from l4export.calibration.text import CalibrationText
from l4export.model.weight_names import ROUTER
from l4export.quantization.schemes import Scheme
from l4export.storage.journal import Journal, SourceFiles
from l4export.weights.recipes import Recipe, Region

if TYPE_CHECKING:
    import torch

    from l4export.calibration.layer import MatrixRecord
    from l4export.quantization.gptq import QuantizedMatrix
    from l4export.reference.streamed_model import StreamedReference

__all__ = ["CalibrationPlan", "calibrate"]

_PIECE_BYTES = 1 << 20


@dataclass
class CalibrationPlan:
    """The text, the weights that are calibrated, and where what is found of them lies.

    A weight's codes, scales and zero points are laid out as the checkpoint has it, but narrower along the input axis:
    [N, K'], or [E, K', N] for experts; a router is float32 [E, D]. Passes add weights while they plan; `directory` need
    not exist before `calibrate`.
    """

    text: CalibrationText
    directory: Path
    _parts: dict[tuple[str, int], tuple[int, tuple[int, ...], np.dtype[Any]]] = field(default_factory=dict)
    _sizes: dict[int, int] = field(default_factory=dict)
    schemes: dict[int, dict[str, Scheme]] = field(default_factory=dict)
    """Layer -> name within it -> scheme."""

    def takes(self, name: str, scheme: Scheme) -> bool:
        """Whether a weight is calibrated: an integer matrix of a layer."""
        return scheme.kind != "fp8" and _split(name) is not None

    def add(self, name: str, shape: tuple[int, ...], scheme: Scheme) -> list[StoredPart]:
        """Plan a weight of the checkpoint's `shape`; returns its codes, scales and zero points as lazy tensors."""
        found = _split(name)
        assert found is not None
        layer, short = found
        self.schemes.setdefault(layer, {})[short] = scheme
        k = shape[1] if len(shape) == 3 else shape[-1]
        n = shape[2] if len(shape) == 3 else shape[0]
        widths = [scheme.codes_shape(n, k)[1], scheme.scales_shape(n, k)[1]]
        dtypes = [scheme.codes_dtype, np.dtype(scheme.scale_dtype)]
        if (zeros := scheme.zero_points_shape(n, k)) is not None:
            widths.append(zeros[1])
            dtypes.append(np.dtype(np.uint8))
        narrow = [(shape[0], width, n) if len(shape) == 3 else (n, width) for width in widths]
        return [self._place(name, index, *part) for index, part in enumerate(zip(narrow, dtypes, strict=True))]

    def add_router(self, name: str, shape: tuple[int, ...]) -> StoredPart:
        """Plan a router; returns its fitted weights as a lazy tensor."""
        return self._place(name, 0, shape, np.dtype(np.float32))

    def _place(self, name: str, index: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> StoredPart:
        found = _split(name)
        assert found is not None
        at = -(-self._sizes.get(found[0], 0) // 8) * 8
        self._parts[name, index] = (at, shape, dtype)
        self._sizes[found[0]] = at + int(np.prod(shape)) * dtype.itemsize
        return StoredPart(self, name, index)

    def layout(self, name: str, index: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of one part of a weight."""
        return self._parts[name, index][1:]

    @property
    def nbytes(self) -> int:
        """What all layers' files take."""
        return sum(self._sizes.values())

    def digest(self) -> str:
        """sha256 (hex) of everything that decides the result, except the checkpoint and the program."""
        schemes = {f"{layer} {name}": scheme.name for layer, of in self.schemes.items() for name, scheme in of.items()}
        told = json.dumps([self.text.to_dict(), schemes], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    def array(self, name: str, index: int, mode: str = "r") -> np.ndarray:
        """One part of a weight, mapped from its layer's file."""
        found = _split(name)
        assert found is not None
        at, shape, dtype = self._parts[name, index]
        path = self.directory / f"layer-{found[0]:05d}.codes"
        return np.memmap(path, dtype, mode, at, shape)  # type: ignore[call-overload, no-any-return]

    def create(self, layer: int) -> Path:
        """A new file of a layer's final size; what an earlier build left of the layer is removed."""
        for path in _files(self.directory, layer):
            path.unlink(missing_ok=True)
        path = self.directory / f"layer-{layer:05d}.codes"
        with open(path, "xb") as file:
            file.truncate(self._sizes.get(layer, 0))
        return path

    def keep(self, name: str, expert: int | None, matrix: QuantizedMatrix) -> None:
        """Write what was found of a weight, or of one expert of it."""
        for index, part in enumerate((matrix.codes, matrix.scales, matrix.zero_points)):
            if part is not None:
                stored = self.array(name, index, "r+")
                if expert is None:
                    stored[:] = part
                else:
                    stored[expert] = part.T

    def keep_router(self, layer: int, fitted: NDArray[np.float32]) -> None:
        """Write a layer's router, if it was planned."""
        name = f"model.layers.{layer}.{ROUTER}"
        if (name, 0) in self._parts:
            self.array(name, 0, "r+")[:] = fitted


class StoredPart(Recipe):
    """Codes, scales or zero points of a calibrated weight, or a router, once they are found."""

    def __init__(self, plan: CalibrationPlan, weight: str, index: int) -> None:
        shape, dtype = plan.layout(weight, index)
        super().__init__(ir.DataType.from_numpy(dtype), shape)
        self.plan, self.weight, self.index = plan, weight, index

    def read(self, region: Region) -> np.ndarray:
        """A C-contiguous copy of a region."""
        return np.array(self.plan.array(self.weight, self.index)[region], order="C")


def calibrate(
    plan: CalibrationPlan,
    reference: StreamedReference,
    head: dict[str, str],
    sources: SourceFiles,
    on_notice: Callable[[str], None],
) -> dict[str, Any]:
    """Calibrate every layer, continuing an earlier build with the same `head` and sources; returns the report.

    Every layer depends on all `sources`: the layers before it decide its inputs, and the routers after it decide which
    errors matter.

    Raises:
        InputError: a weight that cannot be quantised.
        SourceChanged: a source is no longer what it was when it was opened.
        OSError: when writing fails.
    """
    directory = plan.directory
    directory.mkdir(exist_ok=True)
    reads = dict.fromkeys(range(reference.config.num_hidden_layers), sources.names)
    with Journal(directory, head, sources, reads) as journal:
        done = _intact_layers(directory, journal, reference.config.num_hidden_layers)
        journal.start()
        if done:
            on_notice(f"resuming: {done} layers were already calibrated")
        _Run(plan, reference, directory, journal, on_notice).layers(done)
    layers = [json.loads((directory / f"layer-{layer:05d}.json").read_text()) for layer in sorted(plan.schemes)]
    return {"text": plan.text.to_dict(), "matrices": [record for layer in layers for record in layer]}


class _Run:
    def __init__(
        self,
        plan: CalibrationPlan,
        reference: StreamedReference,
        directory: Path,
        journal: Journal,
        on_notice: Callable[[str], None],
    ) -> None:
        self.plan, self.reference, self.directory = plan, reference, directory
        self.journal, self.on_notice = journal, on_notice

    def layers(self, done: int) -> None:
        """Calibrate the layers from number `done` on."""
        from l4export.calibration.layer import calibrate_layer

        count = self.reference.config.num_hidden_layers
        if done == count:
            return
        hidden = self.hidden(done)
        for layer in range(done, count):
            started = time.monotonic()
            files = self.files(layer)
            self.plan.create(layer)
            schemes = self.plan.schemes.get(layer, {})

            def keep(name: str, expert: int | None, matrix: QuantizedMatrix, layer: int = layer) -> None:
                self.plan.keep(f"model.layers.{layer}.{name}", expert, matrix)

            records = calibrate_layer(
                self.reference, layer, schemes, hidden, keep, functools.partial(self.plan.keep_router, layer)
            )
            told = [{**dataclasses.asdict(r), "name": f"model.layers.{layer}.{r.name}"} for r in records]
            files[1].write_text(json.dumps(told), encoding="utf-8")
            with open(files[2], "wb") as file:
                for x in hidden:
                    file.write(x.numpy().data)
            self.journal.add(layer, tuple(map(_checksum, files)))
            if layer:
                self.files(layer - 1)[2].unlink(missing_ok=True)
            self.on_notice(_summary(layer, count, records, time.monotonic() - started))

    def files(self, layer: int) -> tuple[Path, Path, Path]:
        """Of one layer, in the order of the journal's checksums."""
        return _files(self.directory, layer)

    def hidden(self, done: int) -> list[torch.Tensor]:
        """The residual streams [2, T, D] before layer `done`, one for each sequence."""
        import torch

        text, width = self.plan.text, self.reference.config.hidden_size
        sequences = text.sequences
        if done == 0:
            tower = self.reference.tower_rows()
            seen = (tower.of(ids, text.images(index)) for index, ids in enumerate(sequences))
            pairs = zip(sequences, seen, strict=True)
            return [torch.from_numpy(self.reference.embed(np.asarray([ids, ids]), rows)) for ids, rows in pairs]
        flat = np.fromfile(self.files(done - 1)[2], np.float32)
        ends = np.cumsum([2 * len(ids) * width for ids in sequences])
        return [torch.from_numpy(part.reshape(2, -1, width).copy()) for part in np.split(flat, ends[:-1])]


def _files(directory: Path, layer: int) -> tuple[Path, Path, Path]:
    codes, told, hidden = (directory / f"layer-{layer:05d}.{kind}" for kind in ("codes", "json", "hidden"))
    return codes, told, hidden


def _intact_layers(directory: Path, journal: Journal, count: int) -> int:
    """How many layers can be taken over: all that the journal lists, or none."""
    done = 0
    while done < count and done in journal.entries:
        done += 1
    for layer in range(done):
        files = _files(directory, layer)
        wanted = 3 if layer == done - 1 else 2  # only the last layer's residual streams were kept
        if any(not file.is_file() for file in files[:wanted]):
            return 0
        if tuple(map(_checksum, files[:wanted])) != journal.entries[layer][:wanted]:
            return 0
    return done


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while data := file.read(_PIECE_BYTES):
            checksum = zlib.crc32(data, checksum)
    return checksum


def _summary(layer: int, count: int, records: list[MatrixRecord], seconds: float) -> str:
    """One line for a person."""
    rounded = [record for record in records if record.name != ROUTER]
    if not rounded:
        return f"layer {layer + 1} of {count}: nothing to calibrate"
    errors = [float(np.mean([getattr(record, name) for record in rounded])) for name in ("error", "plain_error")]
    few = sorted({record.expert for record in rounded if record.fallback and record.expert is not None})
    told = f"; too few tokens chose experts {', '.join(map(str, few))}: all the layer's were taken" if few else ""
    return (
        f"layer {layer + 1} of {count} calibrated in {seconds:.1f} s: error {errors[0]:.3g} of the output, "
        f"{errors[1]:.3g} when rounded to nearest{told}"
    )


def _split(name: str) -> tuple[int, str] | None:
    """(layer, name within it) of a layer's weight."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    return (int(match[1]), match[2]) if match else None
