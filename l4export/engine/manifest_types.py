"""What an engine's manifest holds, as Python values. Field by field: docs/reference/manifest.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from l4export.engine.kv_cache import KVStorage
from l4export.engine.profiles import TokenRange
from l4export.model.config import ModelConfig
from l4export.model.vision_config import VisionConfig
from l4export.storage.file_records import FileRecord

__all__ = [
    "CHECK",
    "CPU_KERNELS",
    "DECODER",
    "FORMAT",
    "FORMAT_VERSION",
    "PACKED_WEIGHTS",
    "PORTABLE",
    "UNPACKED",
    "VISION",
    "CheckGraph",
    "DeviceNeeds",
    "EnginePart",
    "Graph",
    "InputSpec",
    "KVLayer",
    "Manifest",
    "PackedWeight",
    "Runtime",
    "TensorSpec",
]

FORMAT = "l4export-engine"
FORMAT_VERSION = 3

DECODER = "decoder"
"""The graph that every engine has: its name in a manifest, and what the names of its files begin with."""

PORTABLE = "portable"
"""The decoder in the form that a CPU can run, of an engine whose own form only its device executes."""

PACKED_WEIGHTS = "packed_weights"
"""The feature that an engine requires, and the field of its manifest, where weights lie in a device's own order."""

UNPACKED = "unpacked-weights"
"""The data file that a portable graph names for weights which are packed. There is none: whoever opens the graph gives
it unpacked weights, and nobody can open it with packed bytes."""

CPU_KERNELS = "cpu_kernels"
"""The feature that an engine requires whose graphs have operators of l4export's own CPU kernels (domain `l4.cpu`)."""

CHECK = "check"
"""The graph by which a device is judged, in engines of targets that have one."""

VISION = "vision"
"""The graph of an engine that sees images; also what its manifest requires of a runtime, and calls the tower."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph.

    Attributes:
        name: As the graph calls it.
        dtype: NumPy's name of it, such as `float32`, or `bfloat16`.
        shape: Numbers, and names of sizes that differ from call to call.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class InputSpec(TensorSpec):
    """An input; where it is `optional`, the graph has a default for it."""

    optional: bool


@dataclass(frozen=True)
class Runtime:
    """What executes a graph. One of another least version is equal.

    Attributes:
        name: The library.
        provider: Its kernels or variant.
        min_version: The least version of `onnxruntime` that computes the graph, such as "1.26". None where it is not
            known, as of engines built before manifests said it, and of other libraries.
    """

    name: str
    provider: str
    min_version: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.name} {self.provider}"


@dataclass(frozen=True)
class DeviceNeeds:
    """The least that a graph needs of a GPU, as versions such as "7.5".

    Attributes:
        compute_capability: What its operators have kernels for.
        cuda: The version of CUDA that the driver must support.
    """

    compute_capability: str
    cuda: str


@dataclass(frozen=True)
class EnginePart:
    """One of the compiled engines that make up a graph, run one after the other.

    `layers` are [first, behind the last]. `graph` and `engine` are files of the directory. `inputs` and `outputs` are
    told as the graph's are; what a part gives under a name, the next one takes under the same name.
    """

    layers: tuple[int, int]
    graph: str
    engine: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Graph:
    """One graph of an engine.

    Attributes:
        file: The whole graph, in ONNX.
        runtime: What it was lowered for.
        inputs: In the graph's order.
        outputs: In the graph's order.
        profiles: Optimisation profiles of compiled engines, by the quantity that they limit; a decoder's has `tokens`,
            new tokens of a row in one call, a vision tower's `tiles`. None where nothing is compiled.
        parts: The compiled engines, in the order in which they run; none where the runtime reads `file`.
        needs: What it needs of a GPU; None where it needs none, or the compiled engines say it themselves.
    """

    file: str
    runtime: Runtime
    inputs: tuple[InputSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Mapping[str, TokenRange], ...]
    parts: tuple[EnginePart, ...]
    needs: DeviceNeeds | None = None


@dataclass(frozen=True)
class PackedWeight:
    """Codes of experts that lie in the order of a device's kernels.

    Attributes:
        name: The initializer, in every graph that reads it.
        layout: The order; `l4export.engine.weight_layout` has those that there are.
        bits: Of one code.
        file: The data file.
        offset: Where the codes begin in it, in bytes.
        shape: [experts, N, K x bits / 8], in bytes, as if they were not packed.
    """

    name: str
    layout: str
    bits: int
    file: str
    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CheckGraph(Graph):
    """The decoder's first layers of every kind, chained as in the whole: what a device must compute as a CPU did.

    Its caches are numbered from 0.

    Attributes:
        layers: Which of the decoder's layers they are, in order.
        operators: The types of its fused operators.
        start: Position of the first token.
        calls: New tokens that are appended at a time. Logits are kept of every token of the first call, and of the last
            token of each other.
        record: The file of the tokens, and of the logits that a CPU gave.
        rounded: Whether the CPU rounded activations to int8 where the device does not.
    """

    layers: tuple[int, ...]
    operators: tuple[str, ...]
    start: int
    calls: tuple[int, ...]
    record: str
    rounded: bool


@dataclass(frozen=True)
class KVLayer:
    """One layer's cache: `kind` is `chunked` or `full` attention; `capacity` in slots, null where it grows."""

    kind: str
    capacity: int | None


@dataclass(frozen=True)
class Manifest:
    """Everything a runtime needs to know of an engine, and what it was made from. No timestamps."""

    requires: tuple[str, ...]
    """Features beyond this format version that a runtime must know, or refuse the engine by their names."""
    generator: str
    target: str
    model: ModelConfig
    precision: dict[str, str]
    """`compute`, `weights`, `kv_cache` and `activations` (of products with FP8 weights) dtypes; `quant`; the dtype of
    `vision`, where there is a tower."""
    max_context: int
    """Longest sequence, in tokens, that a session may hold."""
    kv_layout: str
    kv_storage: KVStorage
    kv_layers: tuple[KVLayer, ...]
    prefill_max_tokens: int
    """A runtime feeds at most this many tokens a call: attention scores take [heads, tokens, total] floats."""
    prefill_cut: int | None
    """New tokens of one call must not lie on both sides of a position that is a multiple of this; None: anywhere."""
    graphs: dict[str, Graph]
    passes: tuple[str, ...]
    options: dict[str, Any]
    """Of the build: `weights` decide the bytes of the data files, `decoder` changes the graph alone."""
    source: dict[str, FileRecord]
    """The checkpoint's files that the engine was made from, by name."""
    files: dict[str, FileRecord]
    """The engine's files, all but the manifest, by name."""
    packed_weights: tuple[PackedWeight, ...] = ()
    """The weights that lie in the order of a device's kernels, which a CPU must unpack."""
    vision: VisionConfig | None = None
    """The tower of the graph `vision`; None: the engine sees no images."""
    sha256: str = field(default="", compare=False)
    """Of the bytes of the file that was read (hex): the engine's identity, because it has the digests of all other
    files. Empty in a manifest that was not read from a file."""

    @property
    def decoder(self) -> Graph:
        """The graph of the language model."""
        return self.graphs[DECODER]

    @property
    def portable(self) -> Graph:
        """The same in the form that a CPU can run: mostly the decoder itself."""
        return self.graphs.get(PORTABLE, self.decoder)

    @property
    def needs_cpu_kernels(self) -> bool:
        """Whether a session on the CPU needs l4export's own kernels."""
        return CPU_KERNELS in self.requires

    @property
    def check(self) -> CheckGraph | None:
        """The graph by which a device is judged; None in engines without one."""
        graph = self.graphs.get(CHECK)
        return graph if isinstance(graph, CheckGraph) else None

    def to_json(self) -> str:
        """The manifest file's text; the same manifest gives the same bytes."""
        raw = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "requires": self.requires,
            "generator": self.generator,
            "target": self.target,
            "model": self.model.to_dict(),
            **({VISION: self.vision.to_dict()} if self.vision else {}),
            "precision": self.precision,
            "max_context": self.max_context,
            "kv_cache": {"layout": self.kv_layout, "storage": self.kv_storage, "layers": self.kv_layers},
            "prefill": {"max_tokens_per_call": self.prefill_max_tokens, "cut_at_multiples_of": self.prefill_cut},
            "graphs": {name: _graph(graph) for name, graph in self.graphs.items()},
            "passes": self.passes,
            "options": self.options,
            "source": self.source,
            "files": self.files,
            **({PACKED_WEIGHTS: self.packed_weights} if self.packed_weights else {}),
        }
        return json.dumps(raw, indent=1, ensure_ascii=False, default=vars) + "\n"


def _graph(graph: Graph) -> dict[str, Any]:
    """Its fields; the limits of profiles get names, and a least version that is not known is left out."""
    runtime = {name: value for name, value in vars(graph.runtime).items() if value is not None}
    profiles = [
        {quantity: dict(zip(("min", "opt", "max"), limits, strict=True)) for quantity, limits in profile.items()}
        for profile in graph.profiles
    ]
    return {**vars(graph), "runtime": runtime, "profiles": profiles}
