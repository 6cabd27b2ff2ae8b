"""Which weights of a model an adapter changes, and how: its tensors' names and shapes, compared with the model's.

A tensor's name is `base_model.model.`, the module's path in the model that was trained, and what the tensor is:

    {linear}.lora_A.weight [r, in], {linear}.lora_B.weight [out, r], with DoRA {linear}.lora_magnitude_vector [out]
    {embedding}.lora_embedding_A [r, vocab], {embedding}.lora_embedding_B [hidden, r]
    {...}.experts.lora_A.weight, of a parameter; of two parameters one is at {...}.experts.base_layer.lora_A.weight
    {...}.experts.{e}.{linear}.lora_A.weight, where the experts were trained as linear layers
    {module}.weight, of modules that were trained and saved as a whole

Which of a layer's two parameters a pair of matrices changes, and which way round, only their shapes tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

from l4export.checkpoint.adapter_config import AdapterConfig
from l4export.checkpoint.adapter_tensors import OTHER_MODEL, WEIGHTS, AdapterTensors, Parts
from l4export.checkpoint.experts import EXPERT_LINEARS, JoinedExperts, expert_linears
from l4export.checkpoint.low_rank import DoraWeight, LoraWeight, LowRank, ReplacedWeight
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.checkpoint.stored_weight import StoredWeight
from l4export.errors import InputError

__all__ = ["Change", "find_changes"]

_EXPERT_LINEAR = re.compile(r"(.+\.experts)\.(0|[1-9][0-9]{0,3})\.(gate_proj|up_proj|down_proj)")

Shape = tuple[int, ...]

Change = Callable[[StoredWeight], StoredWeight]
"""Gives a weight with a change merged into it."""


def find_changes(
    tensors: AdapterTensors, config: AdapterConfig, model: Mapping[str, Shape], tied: bool
) -> dict[str, list[Change]]:
    """The changes of each weight, by its name (without prefix), in the order in which they are made.

    Args:
        tensors: The adapter's.
        config: What its config says.
        model: Names (without prefix) and shapes of the model's weights.
        tied: Whether the model's head is its embedding.

    Raises:
        InputError: a tensor that belongs to no weight or does not fit it, or a target without tensors.
    """
    return _Matcher(tensors, config, model, tied).changes()


class _Matcher:
    """Finds which weights an adapter's tensors change, and how."""

    def __init__(self, tensors: AdapterTensors, config: AdapterConfig, model: Mapping[str, Shape], tied: bool) -> None:
        self._tensors, self._config, self._model, self._tied = tensors, config, model, tied

    def changes(self) -> dict[str, list[Change]]:
        """The changes of each weight, by its name (without prefix), in the order in which they are made.

        Raises:
            InputError: a tensor that belongs to no weight or does not fit it, or a target without tensors.
        """
        found: dict[str, list[Change]] = {}
        for name, tensor in self._tensors.whole.items():
            if name not in self._model:
                raise self._tensors.homeless(tensor)
            self._fits(tensor, tensor.shape, name, self._model[name])
            found[name] = [partial(ReplacedWeight, other=tensor)]
        linears: dict[str, dict[tuple[str, int], Change]] = {}
        for module, (path, parts) in self._tensors.modules.items():
            if (match := _EXPERT_LINEAR.fullmatch(module)) and match[1] + ".down_proj" in self._model:
                name, change = self._expert_linear(match, path, parts)
                linears.setdefault(name, {})[match[3], int(match[2])] = change
                continue
            experts = module.removesuffix(".base_layer")
            if f"{experts}.down_proj" in self._model:
                name, change = self._parameter(experts, path.removesuffix(".base_layer"), parts)
            else:
                name, change = self._linear(module, path, parts)
            found.setdefault(name, []).append(change)
        for name, each in linears.items():
            found.setdefault(name, []).append(_changed_linears(name, each))
        self._check_all_there(found)
        return found

    def _linear(self, module: str, path: str, parts: Parts) -> tuple[str, Change]:
        """What an embedding or a linear layer is changed by."""
        name = f"{module}.weight"
        shape = self._model.get(name)
        if shape is None or len(shape) != 2:
            raise self._tensors.homeless(next(iter(parts.values())))
        if "lora_embedding_A" in parts or "lora_embedding_B" in parts:
            a, b, scale = self._tensors.take(path, parts, "lora_embedding_A", "lora_embedding_B")
            self._fits(a, (a.shape[1], b.shape[0]), name, shape)
            self._check_magnitude(parts, allowed=False)
            return name, partial(LoraWeight, change=LowRank(a, b, scale, transposed=True))
        return name, self._matrix(name, shape, path, parts)

    def _matrix(self, name: str, shape: Shape, path: str, parts: Parts) -> Change:
        """What a matrix [out, in] is changed by: LoRA or DoRA."""
        a, b, scale = self._tensors.take(path, parts, "lora_A", "lora_B")
        self._fits(a, (b.shape[0], a.shape[1]), name, shape)
        self._check_magnitude(parts, allowed=True)
        change, magnitude = LowRank(a, b, scale), parts.get("lora_magnitude_vector")
        if magnitude is None:
            return partial(LoraWeight, change=change)
        self._fits(magnitude, magnitude.shape, name, shape[:1])
        return partial(_dora, change=change, magnitude=magnitude)

    def _expert_linear(self, match: re.Match[str], path: str, parts: Parts) -> tuple[str, Change]:
        """What a linear layer of one expert is changed by."""
        tensor = next(tensor for tensor, linears in EXPERT_LINEARS.items() if match[3] in linears)
        name = f"{match[1]}.{tensor}"
        experts, height, width = self._model[name]
        if int(match[2]) >= experts:
            raise self._tensors.homeless(next(iter(parts.values())))
        return name, self._matrix(name, (width // len(EXPERT_LINEARS[tensor]), height), path, parts)

    def _parameter(self, experts: str, path: str, parts: Parts) -> tuple[str, Change]:
        """What a layer's experts are changed by, all in one."""
        self._check_magnitude(parts, allowed=False)
        sizes = _sizes(parts)
        for tensor in EXPERT_LINEARS:
            name, trained = f"{experts}.{tensor}", f"{path}.{tensor}"
            count, *matrix = self._model[name]
            if sizes is None or sizes in (tuple(matrix), tuple(matrix[::-1])):
                a, b, scale = self._tensors.take(trained, parts, "lora_A", "lora_B", count)
                transposed = self._is_transposed() if matrix[0] == matrix[1] else sizes != tuple(matrix)
                return name, partial(LoraWeight, change=LowRank(a, b, scale, count, transposed))
        assert sizes is not None
        raise self._misfit(parts["lora_A"], sizes, f"{experts}.down_proj", self._model[f"{experts}.down_proj"][1:])

    def _is_transposed(self) -> bool:
        """Which way round PEFT had the experts, as parameters that are not square show, or its release.

        Those before 0.19 had all experts so. Later ones ask the model's class, and of which transformers that was is
        not told.
        """
        for module, (_, parts) in self._tensors.modules.items():
            for tensor in EXPERT_LINEARS:
                _, *matrix = self._model.get(f"{module.removesuffix('.base_layer')}.{tensor}", ()) or (0,)
                if len(set(matrix)) == 2 and _sizes(parts) in (tuple(matrix), tuple(matrix[::-1])):
                    return _sizes(parts) != tuple(matrix)
        if self._config.release and self._config.release < (0, 19):
            return True
        raise InputError(
            f"{self._tensors.path}: experts are square matrices, and which way round the adapter has them cannot be "
            "told; merge it with the version of peft that wrote it"
        )

    def _check_magnitude(self, parts: Parts, allowed: bool) -> None:
        there, some = "lora_magnitude_vector" in parts, next(iter(parts.values()))
        if self._config.dora and not allowed:
            raise InputError(
                f"{self._tensors.path}: {some.name!r}: DoRA of embeddings and of experts as parameters is not read; "
                "merge the adapter with peft"
            )
        if there != self._config.dora:
            problem = "has no lora_magnitude_vector" if self._config.dora else "has a lora_magnitude_vector"
            raise InputError(f"{self._tensors.path}: {some.name!r} {problem}; use_dora says otherwise")

    def _fits(self, tensor: SourceTensor, sizes: Shape, name: str, shape: Shape) -> None:
        if sizes != shape:
            raise self._misfit(tensor, sizes, name, shape)

    def _misfit(self, tensor: SourceTensor, sizes: Shape, name: str, shape: Shape) -> InputError:
        return InputError(
            f"{self._tensors.path}: {tensor.name!r} is for a weight of shape {list(sizes)}, and {name!r} has "
            f"{list(shape)}; {OTHER_MODEL}"
        )

    def _check_all_there(self, found: Mapping[str, object]) -> None:
        if not found:
            raise InputError(f"{self._tensors.path}: holds no tensors; is the file complete?")
        if self._tied and "model.embed_tokens.weight" in found:
            raise InputError(
                f"{self._tensors.path}: changes the embedding, which is this model's head too; merge it with peft"
            )
        for target in self._config.targets:
            if not any(f".{name}".endswith(f".{target}") for name in self._tensors.used):
                raise self._absent("target", target)
        for module in self._config.saved:
            if not any(f".{module}." in f".{name}" for name in self._tensors.whole):
                raise self._absent("saved module", module)

    def _absent(self, what: str, name: str) -> InputError:
        return InputError(
            f"{self._config.where}: the {what} {name[:80]!r} has no tensor in {WEIGHTS}; is the file complete?"
        )


def _sizes(parts: Parts) -> tuple[int, int] | None:
    """Rows of B and columns of A; None where one of them is missing or no matrix."""
    a, b = parts.get("lora_A"), parts.get("lora_B")
    return (b.shape[0], a.shape[1]) if a and b and len(a.shape) == len(b.shape) == 2 else None


def _dora(stored: StoredWeight, change: LowRank, magnitude: SourceTensor) -> StoredWeight:
    return DoraWeight(LoraWeight(stored, change), magnitude)


def _changed_linears(name: str, changes: Mapping[tuple[str, int], Change]) -> Change:
    """The change of a weight [experts, in, out] by those of linear layers of its experts."""
    linears = EXPERT_LINEARS[name.rpartition(".")[2]]

    def merged(stored: StoredWeight) -> StoredWeight:
        matrices = expert_linears(stored, linears)
        for (linear, expert), change in changes.items():
            matrices[linear][expert] = change(matrices[linear][expert])
        return JoinedExperts(stored.name, stored.shape, [matrices[linear] for linear in linears])

    return merged
