"""An engine that shows what it has inside: its own graph, with values of every layer as further outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from l4export.engine.manifest import Manifest, PackedWeight
from l4export.errors import InputError, printable
from l4export.graph.contents import LayerValue, Role, layer_values
from l4export.inspection.graph_file import load_graph
from l4export.model.routing import likeliest
from l4export.quantization.cpu_operators import CPU_DOMAIN
from l4export.runtimes.cache.host_cache import new_host_cache
from l4export.runtimes.images.image_features import ImageFeatures
from l4export.runtimes.images.processor import ProcessedImages
from l4export.runtimes.onnxruntime.cpu_kernels import add_cpu_kernels
from l4export.runtimes.onnxruntime.engine import session_options
from l4export.runtimes.onnxruntime.installed import installed_onnxruntime
from l4export.runtimes.onnxruntime.portable import cpu_session
from l4export.runtimes.session import Session

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["EngineTaps", "TappedInference", "tap_engine"]


@dataclass(frozen=True)
class EngineTaps:
    """What an engine made of T tokens of one row: float32 throughout.

    `logits` [T, vocab]; by layer `hidden` [T, D], the residual stream after it; `router_logits` [T, E], None in a
    dense layer, and the `experts` int64 [T, k] that were chosen by them, none there; `keys` and `values` [K, T, d] as
    the cache holds them, None where it does not hold them all in the model's own float type. Where some token has
    equally likely experts, as float16 makes them, `experts` are two possibilities: only an
    operator's result shows which of the equals it takes.
    """

    logits: NDArray[np.float32]
    hidden: list[NDArray[np.float32]]
    router_logits: list[NDArray[np.float32] | None]
    experts: list[tuple[NDArray[np.int64], ...]]
    keys: list[NDArray[np.float32] | None]
    values: list[NDArray[np.float32] | None]


def tap_engine(
    engine: Path,
    manifest: Manifest,
    pieces: Sequence[NDArray[np.int64]],
    images: ProcessedImages | None = None,
    tower: ImageFeatures | None = None,
) -> EngineTaps:
    """Feed `pieces` of one row, one append each, to the engine with its residual streams and routers as outputs.

    The first piece shows `images`, whose features the `tower` gives. The graph is changed in memory alone. The session
    is the runtime's own, and so are caches, cuts and calls.

    Raises:
        EnvironmentLacks: onnxruntime is not installed.
        InputError: a graph without these values, or one that ONNX Runtime cannot load.
    """
    config, model = manifest.model, load_graph(engine, manifest)
    layers, values = range(config.num_hidden_layers), layer_values(model.graph)

    def name(role: Role, layer: int) -> str:
        if (value := values.get(LayerValue(role, layer))) is None:
            raise InputError(f"{engine}: the graph has no {role} of layer {layer}; build the engine again")
        return str(value.name)

    hidden = [name("residual", layer) for layer in layers]
    routers = {layer: name("router_logits", layer) for layer in config.moe_layers}
    inference = TappedInference(engine, model, [*hidden, *routers.values()], manifest.packed_weights)
    session = Session(partial(new_host_cache, inference), manifest, 1, sum(map(len, pieces)), features=tower)
    first = session.append(pieces[0], images=images)[0]
    logits = np.concatenate([first, *(session.append(piece)[0] for piece in pieces[1:])])
    count = len(logits)

    def cache(role: Role, layer: int) -> NDArray[np.float32] | None:
        return _whole_cache(inference.last[name(role, layer)].numpy(), config.head_dim, count)

    seen = {name: np.concatenate(parts).reshape(count, -1) for name, parts in inference.taps.items()}
    router_logits = [seen[routers[layer]] if layer in routers else None for layer in layers]
    return EngineTaps(
        logits,
        [seen[name] for name in hidden],
        router_logits,
        [_chosen(logits, config.num_experts_per_tok) for logits in router_logits],
        [cache("present_key", layer) for layer in layers],
        [cache("present_value", layer) for layer in layers],
    )


def _chosen(logits: NDArray[np.float32] | None, count: int) -> tuple[NDArray[np.int64], ...]:
    """What router logits [T, E] leave open."""
    if logits is None:
        return ()
    first, last = likeliest(logits, count), likeliest(logits, count, last=True)
    return (first,) if (np.sort(first) == np.sort(last)).all() else (first, last)


def _whole_cache(cache: NDArray[Any], head_dim: int, count: int) -> NDArray[np.float32] | None:
    """The first `count` slots [K, count, d] of a float cache [1, K, slots, d] that has as many."""
    if cache.dtype.kind != "f" or cache.shape[2] < count or cache.shape[3] != head_dim:
        return None
    return cache[0, :, :count].astype(np.float32)


def _inference_session(
    engine: Path, model: ir.Model, taps: Sequence[str], packed: Sequence[PackedWeight]
) -> onnxruntime.InferenceSession:
    """The graph with further outputs; its weights stay in the engine's files."""
    options = session_options()
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in taps:
        if name not in values:
            raise InputError(f"{engine}: no value {name} in the graph; build the engine again")
        model.graph.outputs.append(values[name])
    if CPU_DOMAIN in model.opset_imports:
        add_cpu_kernels(options)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(engine.absolute()))
    try:
        return cpu_session(ir.to_proto(model).SerializeToString(), options, engine, packed)
    except InputError:
        raise
    except Exception as error:
        detail = printable(str(error))[:300]
        version = installed_onnxruntime().__version__
        raise InputError(f"{engine}: ONNX Runtime {version} cannot load it ({detail})") from error


class TappedInference:
    """Stands where a session has its inference session, and keeps what the taps give, call by call.

    `model` is the engine's own graph, or one with other names for the taps. `packed` are its weights that must be
    unpacked. Raises as `tap_engine`.

    Attributes:
        taps: Name -> float32 [S, ...] of each call (the row alone).
        last: Every output of the last call by name, as OrtValues.
    """

    def __init__(self, engine: Path, model: ir.Model, taps: Sequence[str], packed: Sequence[PackedWeight] = ()) -> None:
        self._inference = _inference_session(engine, model, taps, packed)
        self.taps: dict[str, list[NDArray[np.float32]]] = {name: [] for name in taps}
        self.last: dict[str, Any] = {}

    def io_binding(self) -> _Binding:
        """A binding that knows the names of its outputs."""
        return _Binding(self._inference.io_binding())

    def run_with_iobinding(self, binding: _Binding) -> None:
        """Run with the taps bound too, each time anew: their shapes follow the call's."""
        for name in self.taps:
            binding.bind_output(name, "cpu")
        self._inference.run_with_iobinding(binding.inner)
        self._keep(dict(zip(binding.outputs, binding.inner.get_outputs(), strict=True)))

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The named outputs, as arrays."""
        import onnxruntime as ort

        values = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}
        wanted = [*names, *self.taps]
        self._keep(dict(zip(wanted, self._inference.run_with_ort_values(wanted, values), strict=True)))
        return [self.last[name].numpy() for name in names]

    def taken(self, name: str) -> NDArray[np.float32]:
        """What a tap has given since it was asked for the last time: float32 [T, ...], the row alone."""
        parts = self.taps[name]
        values = np.concatenate(parts)
        parts.clear()
        return values

    def _keep(self, outputs: dict[str, Any]) -> None:
        self.last = outputs
        for name, parts in self.taps.items():
            value = outputs[name].numpy()
            parts.append(np.array(value.reshape(-1, value.shape[-1]), dtype=np.float32))


class _Binding:
    """An IO binding that remembers its outputs in the order in which it gives them back."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.outputs: list[str] = []

    def bind_input(self, *arguments: Any) -> None:
        """As the inner binding's."""
        self.inner.bind_input(*arguments)

    def bind_output(self, name: str, *arguments: Any) -> None:
        """As the inner binding's; a name that is bound again keeps its place."""
        if name not in self.outputs:
            self.outputs.append(name)
        self.inner.bind_output(name, *arguments)
