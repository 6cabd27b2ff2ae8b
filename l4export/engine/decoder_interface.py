"""What a decoder takes and gives, for a model, a KV layout and dtypes: docs/reference/engine.md, in code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from l4export.engine.kv_cache import KV_STORAGE
from l4export.engine.manifest_types import InputSpec, Manifest, TensorSpec
from l4export.model.config_fields import show

__all__ = ["DecoderInterface"]

Shape = tuple[int | str, ...]

_CALL_INPUTS: dict[str, Shape] = {
    "input_ids": ("batch", "sequence"),
    "attention_mask": ("batch", "total"),
    "logits_to_keep": (),
    "mask_start": ("batch_or_1",),
    "cache_start": ("batch_or_1",),
}
"""Inputs of every call beside the caches, all int64, with their shapes."""

_MAY_BE_OPTIONAL = {"logits_to_keep", "mask_start", "cache_start", "image_features"}


class DecoderInterface:
    """Inputs and outputs of a decoder, or of the part of it that holds `layers`, [first, after the last].

    A part takes `hidden_states.{n}` where another part comes before it and n is its first layer, and gives them where
    another follows. Where the engine sees images, what has the first layer takes `image_features`, the rows of the
    call's image tokens. Of the inputs of a call it takes those that it uses; a whole decoder takes all.
    """

    def __init__(self, manifest: Manifest, layers: tuple[int, int]) -> None:
        self.manifest, self.layers = manifest, layers
        (start, stop), is_last = layers, layers[1] == manifest.model.num_hidden_layers
        self.inputs: dict[str, tuple[str, Shape]] = {name: ("int64", shape) for name, shape in _CALL_INPUTS.items()}
        self.inputs |= self._hidden(start) if start else {}
        self.inputs |= self._image_features() if manifest.vision and start == 0 else {}
        self.inputs |= self._caches("past_key_values", "past")
        self.outputs = self._logits() if is_last else self._hidden(stop)
        self.outputs |= self._caches("present", "present")
        self.needed = {*self.inputs, *self.outputs}
        if start or not is_last:
            self.needed -= _CALL_INPUTS.keys() - ({"input_ids"} if start == 0 else set())

    def contradictions(
        self, inputs: Sequence[InputSpec], outputs: Sequence[TensorSpec], path: str
    ) -> Iterator[tuple[str, str]]:
        """Yield where declared inputs and outputs differ from these: fields below `path`, and what is wrong with them.

        Only the first of them should be read.
        """
        names = Counter(tensor.name for tensor in (*inputs, *outputs))
        for name, count in names.items():
            if count > 1:
                yield path, f"has {count} inputs and outputs called {show(name)}"
        yield from self._side(inputs, self.inputs, f"{path}.inputs")
        yield from self._side(outputs, self.outputs, f"{path}.outputs")
        for index, tensor in enumerate(inputs):
            if tensor.optional and tensor.name not in _MAY_BE_OPTIONAL:
                yield f"{path}.inputs[{index}].optional", f"is true, and nothing can stand in for {tensor.name}"
        yield from self._in_place(inputs, outputs, path)

    def _side(
        self, declared: Sequence[TensorSpec], expected: dict[str, tuple[str, Shape]], path: str
    ) -> Iterator[tuple[str, str]]:
        for index, tensor in enumerate(declared):
            if tensor.name not in expected:
                yield f"{path}[{index}].name", f"is {show(tensor.name)}, which a decoder of these layers does not have"
            dtype, shape = expected[tensor.name]
            if tensor.dtype != dtype:
                yield f"{path}[{index}].dtype", f"of {tensor.name} is {tensor.dtype}; expected {dtype}"
            if tensor.shape not in {shape, self._fixed(tensor.name, shape)}:
                yield (
                    f"{path}[{index}].shape",
                    f"of {tensor.name} is {_listed(tensor.shape)}; expected {_listed(shape)}",
                )
        names = {tensor.name for tensor in declared}
        for name in expected:
            if name in self.needed - names:
                yield path, f"lack {name}"

    def _in_place(
        self, inputs: Sequence[InputSpec], outputs: Sequence[TensorSpec], path: str
    ) -> Iterator[tuple[str, str]]:
        """A cache that stays where it is has one shape, as input and as output."""
        if self.manifest.kv_layout == "concat":
            return
        past = {tensor.name.removeprefix("past_key_values."): tensor.shape for tensor in inputs}
        for index, tensor in enumerate(outputs):
            cache = tensor.name.removeprefix("present.")
            if past.get(cache, tensor.shape) != tensor.shape:
                yield f"{path}.outputs[{index}].shape", f"of {tensor.name} is not that of past_key_values.{cache}"

    def _caches(self, prefix: str, growing: str) -> dict[str, tuple[str, Shape]]:
        """Keys and values of every layer; `growing` is the name of the number of slots in layout concat."""
        manifest, storage = self.manifest, KV_STORAGE[self.manifest.precision["kv_cache"]]
        heads, width = manifest.model.num_key_value_heads, manifest.model.head_dim // storage.channels_per_element
        found: dict[str, tuple[str, Shape]] = {}
        for layer in range(*self.layers):
            slots = growing if manifest.kv_layout == "concat" else "capacity"
            if manifest.kv_layout == "chunked" and manifest.kv_layers[layer].kind == "chunked":
                slots = "chunk_capacity"
            for kind in ("key", "value"):
                found[f"{prefix}.{layer}.{kind}"] = storage.dtype, ("batch", heads, slots, width)
        return found

    def _fixed(self, name: str, shape: Shape) -> Shape:
        """The shape of a cache that the build has given its number of slots; other shapes as they are."""
        if len(shape) != 4 or self.manifest.kv_layout == "concat":
            return shape
        capacity = self.manifest.kv_layers[int(name.split(".")[1])].capacity
        assert capacity is not None
        return (*shape[:2], capacity, shape[3])

    def _image_features(self) -> dict[str, tuple[str, Shape]]:
        dtype = KV_STORAGE[self.manifest.precision["compute"]].dtype
        return {"image_features": (dtype, ("image_tokens", self.manifest.model.hidden_size))}

    def _hidden(self, layer: int) -> dict[str, tuple[str, Shape]]:
        dtype = KV_STORAGE[self.manifest.precision["compute"]].dtype
        return {f"hidden_states.{layer}": (dtype, ("batch", "sequence", self.manifest.model.hidden_size))}

    def _logits(self) -> dict[str, tuple[str, Shape]]:
        return {"logits": ("float32", ("batch", "logits_sequence", self.manifest.model.vocab_size))}


def _listed(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"[:100]
