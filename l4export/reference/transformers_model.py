"""The reference: transformers' Llama 4 in float32 on the checkpoint's own weights."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.checkpoint import Checkpoint, open_checkpoint
from l4export.checkpoint.hf_config import text_config
from l4export.checkpoint.hf_rope import KEYS
from l4export.checkpoint.strict_config import fields_by_layer, strict_fields
from l4export.errors import EnvironmentLacks, InputError, printable
from l4export.model.config import ModelConfig
from l4export.model.tensors import tensors
from l4export.model.weight_names import moved_up
from l4export.quantization.schemes import FP8_MAX
from l4export.reference.routing_ties import Choice

__all__ = ["UNBOUNDED_CHUNK", "HFReference", "check_reference_packages", "reference_config"]

UNBOUNDED_CHUNK = 2**31 - 1
"""A chunk that no sequence outgrows: plain causal attention, for which transformers has no number."""

_BY_LAYER = ("moe_layers", "interleave_moe_layer_step", "no_rope_layers", "no_rope_layer_interval", "layer_types")


class HFReference:
    """`Llama4ForCausalLM`, loaded by transformers itself in float32 on the CPU.

    With `layers` (A, B) it is the model made of layers A .. B - 1 alone, numbered from 0, under the checkpoint's own
    embedding, final norm and head.

    Independent of l4export's own readers where the checkpoint is as transformers saves it: config and weights go
    through `from_pretrained`, those of a slice through the safetensors library first. Weights in any other form, and
    those of a checkpoint that was opened with adapters, are read by l4export, as float32. Only what transformers cannot
    run is changed in the config (see `reference_config`): an `attention_chunk_size` of null (plain causal attention),
    for example, becomes a chunk no sequence outgrows.

    Raises:
        EnvironmentLacks: torch or transformers is not installed.
        InputError: the checkpoint is not one l4export reads, lacks a weight, or lacks a layer of the slice.
    """

    def __init__(self, checkpoint: Path | Checkpoint, layers: tuple[int, int] | None = None) -> None:
        opened = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
        config = reference_config(opened, layers)
        weights = _weights(opened, layers)
        import torch
        import transformers

        self._torch = torch
        self.config = opened.config if layers is None else opened.config.slice_layers(*layers)
        model, report = transformers.Llama4ForCausalLM.from_pretrained(
            opened.path if weights is None else None,
            config=config,
            state_dict=weights,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        if missing := sorted(report["missing_keys"]):  # transformers would go on with random numbers
            raise InputError(
                f"{opened.path}: tensor {missing[0]!r} is missing; config.json and the weights do not match"
            )
        self.model: Any = model.eval()
        self._images: tuple[Any, int] | None = None

    def see(self, features: NDArray[np.float32], image_token: int) -> None:
        """From now on every prompt begins with a text whose first image tokens are these rows [rows, D], in order.

        The rows take the place of the embedding's before the first layer, as in `Llama4ForConditionalGeneration`.
        """
        self._images = self._torch.from_numpy(np.ascontiguousarray(features)), image_token

    def replace(self, weights: Iterable[tuple[str, NDArray[np.float32]]]) -> None:
        """Replace weights, given by their checkpoint names (without prefix) and in the checkpoint's layout."""
        parameters = dict(self.model.named_parameters())
        with self._torch.no_grad():
            for name, values in weights:
                parameters[name].copy_(self._torch.from_numpy(np.ascontiguousarray(values)))

    def round_weights(self, dtypes: Mapping[str, str]) -> None:
        """Round weights, by their checkpoint names (without prefix), to dtypes as torch calls them."""
        parameters = dict(self.model.named_parameters())
        with self._torch.no_grad():
            for name, dtype in dtypes.items():
                parameters[name].copy_(parameters[name].to(getattr(self._torch, dtype)))

    def round_inputs(self, scales: Mapping[str, float]) -> None:
        """Round the inputs of weights to FP8, as `QuantizeActivations` does; `scales` are by the weights' names.

        The experts' forward is written out again, because the input of their second product is inside of it.
        """
        torch = self._torch

        def rounded(x: Any, weight: str) -> Any:
            return (x / scales[weight]).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).to(x.dtype) * scales[weight]

        def experts(module: Any, name: str, x: Any) -> Any:
            x = x.view(module.num_experts, -1, module.hidden_size)
            gate, up = torch.bmm(rounded(x, f"{name}.gate_up_proj"), module.gate_up_proj).chunk(2, dim=-1)
            gated = rounded(up * module.act_fn(gate), f"{name}.down_proj")
            return torch.bmm(gated, module.down_proj).view(-1, module.hidden_size)

        for name, module in self.model.named_modules():
            if f"{name}.weight" in scales:
                module.register_forward_pre_hook(lambda _, args, weight=f"{name}.weight": (rounded(args[0], weight),))
            elif f"{name}.gate_up_proj" in scales:
                module.forward = functools.partial(experts, module, name)

    def logits(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """token_ids int64 [batch, tokens] -> logits float32 [batch, tokens, vocab], in one pass without a cache."""
        with self._torch.inference_mode():
            ids = self._torch.from_numpy(np.ascontiguousarray(token_ids))
            output: NDArray[np.float32] = self.model(**self._prompt(ids), use_cache=False).logits.float().numpy()
        return output

    def routed(
        self, token_ids: NDArray[np.int64], swapped: Collection[Choice]
    ) -> tuple[NDArray[np.float32], dict[int, NDArray[np.float32]]]:
        """Logits [T, vocab] and, by layer, router logits [T, E], both float32, of token ids int64 [T].

        In the choices `swapped`, the likeliest expert that was left out takes the place of the least likely one that
        was not.
        """
        found: dict[int, NDArray[np.float32]] = {}

        def choose(layer: int, router: Any, output: tuple[Any, Any]) -> tuple[Any, Any]:
            scores, logits = output
            found[layer] = logits.float().numpy()
            for at in sorted(position for of, position in swapped if of == layer):
                *_, last, next_best = logits[at].topk(router.top_k + 1).indices.tolist()
                scores[at, last] = 0.0
                scores[at, next_best] = self._torch.sigmoid(logits[at, next_best])
            return scores, logits

        hooks = [
            layer.feed_forward.router.register_forward_hook(
                lambda router, _, output, index=index: choose(index, router, output)
            )
            for index, layer in enumerate(self.model.model.layers)
            if layer.is_moe_layer
        ]
        try:
            return self.logits(token_ids[None])[0], found
        finally:
            for hook in hooks:
                hook.remove()

    def greedy(self, token_ids: Sequence[int], count: int) -> list[int]:
        """The next `count` tokens with transformers' own cache. Each is the likeliest one; no token stops."""
        ids = self._torch.tensor([list(token_ids)])
        with self._torch.inference_mode():
            output = self.model(**self._prompt(ids), use_cache=True)
            tokens = [int(output.logits[0, -1].argmax())]
            while len(tokens) < count:
                step = self._torch.tensor([[tokens[-1]]])
                output = self.model(input_ids=step, past_key_values=output.past_key_values, use_cache=True)
                tokens.append(int(output.logits[0, -1].argmax()))
        return tokens

    def _prompt(self, ids: Any) -> dict[str, Any]:
        """What the model takes for token ids int64 [batch, tokens] from the beginning of a prompt on."""
        if self._images is None:
            return {"input_ids": ids}
        rows, image_token = self._images
        embedded = self.model.get_input_embeddings()(ids).clone()
        places = (ids == image_token).nonzero()[: len(rows)]  # later ones were generated, and are tokens as any other
        if len(ids) != 1 or len(places) != len(rows):
            raise InputError(f"{len(rows)} rows of images for a prompt of {len(places)} image tokens in one row of ids")
        embedded[0, places[:, 1]] = rows
        return {"inputs_embeds": embedded}


def check_reference_packages() -> None:
    """Check that the reference can run here.

    Raises:
        EnvironmentLacks: torch or transformers is not installed.
    """
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise EnvironmentLacks(
            "the reference needs torch and transformers: pip install 'l4export[reference]'"
        ) from error


def reference_config(checkpoint: Checkpoint, layers: tuple[int, int] | None = None) -> Any:
    """The `Llama4TextConfig` of a checkpoint's text model, or of its layers A .. B - 1, as transformers can run it.

    It has the fields that decide what is computed. They are as config.json has them, so that transformers reads them
    itself and a misreading of ours shows. Only what transformers refuses (a number of another kind such as 64.0, null,
    0, lists that are too long) is replaced by what l4export read.

    Raises:
        EnvironmentLacks: torch or transformers is not installed.
        InputError: the checkpoint lacks a layer of the slice, or transformers refuses its config.
    """
    check_reference_packages()
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = checkpoint.config
    fields = _runnable(text_config(checkpoint.raw_config), config)
    if layers is not None:
        fields |= fields_by_layer(config.slice_layers(*layers))  # refuses what is no slice of this model
    try:
        return transformers.Llama4TextConfig.from_dict(fields)
    except Exception as error:  # a check of transformers that is not known here
        path, detail = checkpoint.path / "config.json", printable(str(error))[:300]
        raise InputError(f"{path}: transformers refuses it ({detail}); correct it") from error


def _runnable(text: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The fields for `reference_config`."""
    plain = [name for name, value in config.to_dict().items() if not isinstance(value, list | dict)]
    fields = {name: text[name] for name in (*plain, *_BY_LAYER, *KEYS) if name in text}
    fields |= strict_fields(text, config)
    fields |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # they change no logit
    fields["attention_chunk_size"] = config.attention_chunk_size or UNBOUNDED_CHUNK
    return copy.deepcopy(fields)


def _weights(checkpoint: Checkpoint, layers: tuple[int, int] | None) -> dict[str, Any] | None:
    """The text model's weights, or those of layers under their new numbers; None: as `from_pretrained` reads them."""
    if checkpoint.is_plain():
        return None if layers is None else _slice_weights(checkpoint, *layers)
    import torch

    first, config = (0, checkpoint.config) if layers is None else (layers[0], checkpoint.config.slice_layers(*layers))
    weights: dict[str, Any] = {}
    for name, shape in tensors(config).items():
        stored = checkpoint.tensor(moved_up(name, first), shape)
        weights[name] = torch.from_numpy(stored.read().astype(np.float32))
    return weights


def _slice_weights(checkpoint: Checkpoint, start: int, stop: int) -> dict[str, Any]:
    """The text model's tensors outside of layers, and those of layers start .. stop - 1 under their new numbers."""
    from safetensors import safe_open

    weights: dict[str, Any] = {}
    for file in checkpoint.files:
        with safe_open(file.path, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                if new := _slice_name(name.removeprefix(checkpoint.prefix), start, stop):
                    weights[new] = opened.get_tensor(name)
    return weights


def _slice_name(name: str, start: int, stop: int) -> str | None:
    """The name in the slice of a tensor of the text model; None for a tensor that is not in it."""
    if not (match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)):
        return name if name.startswith(("model.", "lm_head.")) else None
    layer = int(match[1])
    return f"model.layers.{layer - start}.{match[2]}" if start <= layer < stop else None
