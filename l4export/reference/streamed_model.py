"""The reference for models that are larger than memory: transformers' own layers, one at a time.

Attention is causal, so one pass over a text gives what every position gives when tokens are fed one by one: there is
no path for decoding. Memory: a layer's attention and dense part, one expert, and the activations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from l4export.checkpoint import Checkpoint
from l4export.errors import InputError
from l4export.model.tensors import tensors
from l4export.model.weight_names import ROUTER, moved_up
from l4export.reference.image_rows import ImageRows, TowerRows
from l4export.reference.transformers_model import reference_config
from l4export.weights.recipes import Cast, Source, whole

if TYPE_CHECKING:
    import torch

    from l4export.reference.streamed_layer import Choose, LayerTaps, StreamedLayer

__all__ = ["Replacement", "StreamedReference"]

_HEAD_BYTES = 64 << 20
"""The head is multiplied in pieces of this many bytes, because it is the largest matrix of a model."""

Replacement = Callable[[str, slice], "NDArray[np.float32] | None"]
"""(name, rows) -> other values for these rows of a weight's first axis, or None where the checkpoint's are right."""


class StreamedReference:
    """`Llama4ForCausalLM` in float32 on the CPU, computed layer by layer. Weights are read by l4export itself.

    With `layers` (A, B) it is the model of these layers alone, as `HFReference` has it. `replaced` may give other
    values for weights (named as in the model that is run), such as an engine's dequantised ones.

    Raises:
        EnvironmentLacks: torch or transformers is not installed.
        InputError: the checkpoint is not one l4export reads, or lacks a layer of the slice; when a tensor is read that
            is missing, not finite, or of another shape than config.json says.
    """

    def __init__(
        self, checkpoint: Checkpoint, layers: tuple[int, int] | None = None, replaced: Replacement | None = None
    ) -> None:
        self._checkpoint = checkpoint
        self._hf_config = reference_config(self._checkpoint, layers)
        self._hf_config._attn_implementation = "sdpa"
        self._first = layers[0] if layers else 0
        self._replaced = replaced or (lambda name, rows: None)
        config = self._checkpoint.config
        self.config = config if layers is None else config.slice_layers(*layers)
        self._shapes = tensors(self.config)

    def with_weights(self, replaced: Replacement) -> StreamedReference:
        """The same model with other values for weights, those that `replaced` gives."""
        other = copy.copy(self)
        other._replaced = replaced
        return other

    def tower_rows(self) -> TowerRows:
        """What gives the features of images, by the checkpoint's own tower."""
        return TowerRows(self._checkpoint)

    def embed(self, token_ids: NDArray[np.int64], seen: ImageRows | None = None) -> NDArray[np.float32]:
        """token_ids int64 [B, T] -> the residual stream before the first layer, float32 [B, T, D].

        The features of `seen` images stand at their places in every row, as in `Llama4ForConditionalGeneration`.
        """
        ids, places = np.unique(token_ids, return_inverse=True)
        rows = [self.weight("model.embed_tokens.weight", slice(i, i + 1)) for i in ids.tolist()]
        embedded = np.concatenate(rows)[places.reshape(token_ids.shape)]
        if seen is not None:
            embedded[:, seen.places] = seen.rows
        return embedded

    def layer(self, index: int) -> StreamedLayer:
        """Read a layer except its routed experts."""
        from l4export.reference.streamed_layer import StreamedLayer

        def read(name: str, expert: int | None) -> torch.Tensor:
            rows = None if expert is None else slice(expert, expert + 1)
            return _tensor(self.weight(f"model.layers.{index}.{name}", rows))

        return StreamedLayer(self._hf_config, index, read)

    def router_rows(self, index: int) -> NDArray[np.float32]:
        """The matrix that gives the router logits of layer `index` from a normed residual stream: R diag(g), float32
        [E, D], for the router R and the weights g of the norm before it."""
        prefix = f"model.layers.{index}."
        return self.weight(prefix + ROUTER) * self.weight(f"{prefix}post_attention_layernorm.weight")

    def call(self, index: int, hidden: torch.Tensor) -> dict[str, Any]:
        """Mask, positions and rotation of layer `index` for hidden [B, T, D], as transformers' model makes them."""
        import torch
        from transformers.masking_utils import create_causal_mask, create_chunked_causal_mask
        from transformers.models.llama4.modeling_llama4 import Llama4TextRotaryEmbedding

        positions = torch.arange(hidden.shape[1])[None]
        chunked = self._hf_config.layer_types[index] == "chunked_attention"
        mask = (create_chunked_causal_mask if chunked else create_causal_mask)(
            config=self._hf_config,
            inputs_embeds=hidden,
            attention_mask=None,
            past_key_values=None,
            position_ids=positions,
        )
        rotation = Llama4TextRotaryEmbedding(self._hf_config)(hidden, positions)
        return {"attention_mask": mask, "position_ids": positions, "position_embeddings": rotation}

    def run(self, token_ids: NDArray[np.int64]) -> Iterator[LayerTaps]:
        """Run token_ids int64 [B, T] through the layers; yields the results of each layer in order."""
        hidden = self.embed(token_ids)
        for index in range(self.config.num_hidden_layers):
            (taps,) = self.step(index, hidden)
            yield taps
            hidden = taps.hidden

    def step(
        self, index: int, hidden: NDArray[np.float32], choices: Sequence[Choose | None] = (None,)
    ) -> list[LayerTaps]:
        """Run hidden [B, T, D] through layer `index`, which is read once, for each way to choose experts (None: the
        likeliest)."""
        rows = _tensor(hidden)
        layer, call = self.layer(index), self.call(index, rows)
        return [layer(rows, call, choose=choose) for choose in choices]

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """The residual stream after the last layer, float32 [B, T, D] -> logits float32 [B, T, vocab]."""
        import torch
        from transformers.models.llama4.modeling_llama4 import Llama4TextRMSNorm

        config = self.config
        norm = Llama4TextRMSNorm(config.hidden_size, config.rms_norm_eps)
        norm.load_state_dict({"weight": _tensor(self.weight("model.norm.weight"))}, assign=True)
        name = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        step = max(1, _HEAD_BYTES // (4 * config.hidden_size))
        pieces = [slice(at, min(at + step, config.vocab_size)) for at in range(0, config.vocab_size, step)]
        with torch.inference_mode():
            rows = norm(_tensor(hidden))
            logits = [rows @ _tensor(self.weight(name, piece)).T for piece in pieces]
            result: NDArray[np.float32] = torch.cat(logits, dim=-1).numpy()
        return result

    def weight(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        """A weight, or `rows` of its first axis, as float32. Values are replaced ones or the checkpoint's."""
        shape = self._shapes[name]
        rows = slice(0, shape[0]) if rows is None else rows
        if (other := self._replaced(name, rows)) is not None:
            return other
        stored = moved_up(name, self._first)
        tensor = Source(self._checkpoint.tensor(stored, shape))
        try:
            return Cast(tensor, ir.DataType.FLOAT).read((rows, *whole(shape[1:])))
        except ValueError as error:
            raise InputError(f"{stored}: {error}; check the checkpoint") from error


def _tensor(values: NDArray[np.float32]) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values))
