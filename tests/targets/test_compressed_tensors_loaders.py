"""What transformers with the package compressed-tensors makes of a written checkpoint, module by module and in logits.

The reference is transformers on the original checkpoint's layout, with our dequantised weights, in float32: code times
scale is exact there. With `dequantize=True` transformers rounds that product to bfloat16. It then knows one scheme for
experts and one for all else; what has more is loaded without, and dequantised by the first call.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CompressedTensorsConfig, Llama4ForCausalLM, Llama4ForConditionalGeneration
from written_checkpoints import ATTENTION, bfloat16_sample, meta_sample, policy, write

from l4export.checkpoint import open_checkpoint
from l4export.model.tensors import tensors
from l4export.quantization.policy import Policy, Rule
from workshop import random_ids

IDS = torch.from_numpy(random_ids((2, 40), seed=4))
"""Past two chunk boundaries."""

SHARED = "model.layers.*.shared_expert.*"
POLICIES = {
    "int4": policy("int4"),
    "int8": policy("int8"),
    "fp8": policy("fp8"),
    "mixed": policy("int4", 32, Rule((SHARED,), "int8", 32), Rule((ATTENTION,), "fp8")),
    "experts of some layers": Policy((Rule(("model.layers.[13].feed_forward.experts.*",), "int4", 32),)),
}
MODELS = {"scout": ("scout", False), "maverick": ("maverick", False), "seeing": ("scout", True)}
CASES = [
    ("scout", "int4"), ("scout", "fp8"), ("scout", "mixed"), ("maverick", "int8"),
    ("maverick", "experts of some layers"), ("seeing", "int4"), ("seeing", "mixed"),
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Path]]:
    """The source and what is written, made once for each case."""
    root = tmp_path_factory.mktemp("written")
    source = cache(lambda model: bfloat16_sample(root / model, *MODELS[model]))
    return cache(lambda model, name: (source(model), write(source(model), root / f"{model} {name}", POLICIES[name])))


Made = Callable[[str, str], tuple[Path, Path]]


def model_class(path: Path) -> Any:
    multimodal = "vision_config" in json.loads((path / "config.json").read_text())
    return Llama4ForConditionalGeneration if multimodal else Llama4ForCausalLM


def loaded(path: Path, **options: Any) -> Any:
    model, told = model_class(path).from_pretrained(path, output_loading_info=True, **options)
    wrong = {name: found for name, found in told.items() if found and name != "error_msgs"}
    assert not wrong, wrong  # nothing missing, unexpected or of another shape
    return model.eval()


def our_weights(written: Path) -> dict[str, torch.Tensor]:
    """What the written codes stand for, in float32, by the names of the original layout."""
    checkpoint = open_checkpoint(written)
    stored = {name: checkpoint.tensor(name, shape).read() for name, shape in tensors(checkpoint.config).items()}
    return {checkpoint.prefix + name: torch.from_numpy(values.astype(np.float32)) for name, values in stored.items()}


def with_our_weights(source: Path, written: Path, rounded: bool = False) -> Any:
    """The original model in float32, with what the written codes stand for, as it is or rounded to bfloat16."""
    model, ours = loaded(source, dtype=torch.float32), our_weights(written)
    if rounded:
        ours = {name: values.bfloat16().float() for name, values in ours.items()}
    model.load_state_dict(model.state_dict() | ours)
    return model


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model(input_ids=IDS).logits.float().numpy()
    return found


@pytest.mark.parametrize(("model", "name"), [case for case in CASES if case[1] != "mixed"])
def test_dequantised_by_transformers_the_logits_are_ours(made: Made, model: str, name: str) -> None:
    source, written = made(model, name)
    expected = logits(with_our_weights(source, written, rounded=True))
    theirs = loaded(written, quantization_config=CompressedTensorsConfig(dequantize=True), dtype=torch.float32)
    # float32 sums in another order: experts are called one by one
    np.testing.assert_allclose(logits(theirs), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("model", "name"), [("scout", "int4"), ("maverick", "int8"), ("seeing", "int4")])
def test_as_it_is_loaded_by_itself_weights_alone_are_rounded(made: Made, model: str, name: str) -> None:
    source, written = made(model, name)
    expected = logits(with_our_weights(source, written))
    theirs = logits(loaded(written, dtype=torch.float32))
    np.testing.assert_allclose(theirs, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("model", "name"), CASES)
def test_the_first_call_makes_our_weights_of_every_module(made: Made, model: str, name: str) -> None:
    _, written = made(model, name)
    theirs = loaded(written, dtype=torch.float32)
    logits(theirs)
    state = theirs.state_dict()
    for weight, ours in our_weights(written).items():
        values = state[weight] if weight in state else _experts(state, weight)
        np.testing.assert_allclose(values.float().numpy(), ours.numpy(), rtol=1e-6, err_msg=weight)


def _experts(state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """A weight of the inventory from the linear layers of the experts."""
    module, _, last = name.rpartition(".")
    linears = ("gate_proj", "up_proj") if last == "gate_up_proj" else ("down_proj",)
    experts = range(sum(each.startswith(f"{module}.") and each.endswith("down_proj.weight") for each in state))
    found = [torch.cat([state[f"{module}.{e}.{linear}.weight"] for linear in linears]).T for e in experts]
    return torch.stack(found)


@pytest.mark.parametrize(("model", "name"), CASES)
def test_every_module_has_the_scheme_that_was_chosen_for_it(made: Made, model: str, name: str) -> None:
    """As the library's own matching finds it: what is quantised, in how many bits, and nothing else."""
    from compressed_tensors.quantization.utils import is_module_quantized

    _, written = made(model, name)
    loaded_model, rules, found = loaded(written), POLICIES[name], 0
    for module, layer in loaded_model.named_modules():
        if not isinstance(layer, torch.nn.Linear):
            continue
        of_text = module.removeprefix("language_model.")
        parts = of_text.split(".experts.")
        last = parts[-1].rpartition(".")[2]
        inventory = (
            f"{parts[0]}.experts.{'down_proj' if last == 'down_proj' else 'gate_up_proj'}"
            if len(parts) > 1 else f"{of_text}.weight"
        )  # fmt: skip
        rule = rules.rule_for(inventory) if of_text.startswith("model.layers.") else None
        assert is_module_quantized(layer) == (rule is not None), module
        if rule is not None:
            weights = layer.quantization_scheme.weights
            assert (weights.num_bits, weights.type) == {
                "int4": (4, "int"), "int8": (8, "int"), "fp8": (8, "float"),
            }[rule.kind], module  # fmt: skip
            found += 1
    assert found


def test_what_was_metas_layout_is_loaded(tmp_path: Path) -> None:
    plain, meta = meta_sample(tmp_path)
    written, same = (write(path, tmp_path / f"{path.name}-out") for path in (meta, plain))
    theirs = loaded(written)
    assert theirs.dtype == torch.bfloat16
    assert logits(theirs).shape == logits(loaded(same)).shape
