"""A written checkpoint is run by transformers, and computes what its codes say by their definition."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from signed_checkpoints import FORMS, sign, written

from l4export.checkpoint.sample import write_sample
from l4export.errors import EnvironmentLacks, InputError
from l4export.inspection.engine_weights import open_weights
from l4export.model.tensors import tensors
from l4export.reference.judged import open_judged
from l4export.reference.transformers_engine import TransformersEngine
from l4export.reference.transformers_model import HFReference
from l4export.runtimes import load
from quantised_checkpoints import float_of, of_mlps
from quantised_checkpoints import load as load_tensors
from workshop import Workshop, assert_close, copy_checkpoint, edit_config, random_ids


@pytest.fixture(scope="module")
def directory(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A written checkpoint of a variant in a form, made once."""
    root, made = tmp_path_factory.mktemp("written"), dict[tuple[str, str], Path]()

    def of(variant: str, form: str) -> Path:
        if (variant, form) not in made:
            made[variant, form] = written(workshop.checkpoint(variant), root / f"{variant}-{form}", FORMS[form])
        return made[variant, form]

    return of


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", ["scout", "maverick", "guard"])
def test_logits_are_those_of_the_codes(directory: Any, variant: str, form: str) -> None:
    """Pieces and single tokens, past chunk boundaries (16), against one pass over weights that NumPy dequantised."""
    engine, ids = TransformersEngine(directory(variant, form)), random_ids(75)
    session = engine.session(capacity=75)
    pieces = [session.append(ids[:40])[0], *(session.step([token]) for token in ids[40:60].tolist())]
    pieces += [session.append(ids[60:])[0]]
    assert_close(np.concatenate(pieces), HFReference(float_of(directory(variant, form))).logits(ids[None])[0], 1e-5)


def test_the_last_token_alone(directory: Any) -> None:
    engine, ids = TransformersEngine(directory("scout", "W4A16")), random_ids(20)
    every, last = engine.session(capacity=20).append(ids), engine.session(capacity=20).append(ids, last_only=True)
    assert last.shape == (1, 1, 256)
    assert_close(last, every[:, -1:], 1e-6)


def test_greedy_tokens_are_those_of_the_codes(directory: Any) -> None:
    engine, prompt = TransformersEngine(directory("scout", "W4A16")), random_ids(20).tolist()
    expected = HFReference(float_of(directory("scout", "W4A16"))).greedy(prompt, 12)
    generated = list(engine.generate(prompt, max_new_tokens=12, stop_token_ids=(), images=None))
    assert generated == expected
    stopped = engine.generate(prompt, max_new_tokens=12, stop_token_ids=(expected[3],), images=None)
    assert list(stopped) == expected[: expected.index(expected[3]) + 1]


def test_as_it_is_served_inputs_are_rounded_token_by_token(directory: Any) -> None:
    """To 448 steps of the largest |value| of a token, before every product with FP8 weights.

    Of a dense model, where no router makes much of little. A value halfway between two codes falls to either side.
    """
    path, ids = directory("guard", "FP8"), random_ids(40)
    reference = HFReference(float_of(path))

    def rounded(_: Any, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        scale = given[0].abs().amax(-1, keepdim=True) / 448
        return ((given[0] / scale).to(torch.float8_e4m3fn).float() * scale,)

    for name, module in reference.model.named_modules():
        if isinstance(module, torch.nn.Linear) and of_mlps(name):
            module.register_forward_pre_hook(rounded)
    served, alone = TransformersEngine(path, as_served=True), TransformersEngine(path)
    expected, plain = reference.logits(ids[None]), HFReference(float_of(path)).logits(ids[None])
    assert_close(served.session(capacity=40).append(ids), expected, 1e-3)
    assert np.abs(expected - plain).max() > 1e-2 * np.abs(plain).max()
    assert (served.manifest.precision["activations"], alone.manifest.precision["activations"]) == ("fp8", "fp32")
    assert served.provider == f"{alone.provider}, activations rounded to FP8"


def test_as_it_is_served_integers_are_multiplied_by_floats(directory: Any) -> None:
    path, ids = directory("scout", "W4A16"), random_ids(20)
    served, alone = TransformersEngine(path, as_served=True), TransformersEngine(path)
    np.testing.assert_array_equal(served.session(capacity=20).append(ids), alone.session(capacity=20).append(ids))
    assert served.provider == alone.provider


@pytest.mark.parametrize(("form", "in_bfloat16"), [("W4A16", 3e-2), ("FP8", 0.1)])
def test_transformers_loads_it_by_itself(directory: Any, tmp_path: Path, form: str, in_bfloat16: float) -> None:
    """As a user does, with nothing of l4export's: in float32 the same numbers, in bfloat16 within its rounding.

    That is 2^-8 of every value, 1 % of the largest logit in four layers; and where inputs are rounded to FP8 too, a
    value that falls to the other side moves by 12 %.
    """
    path, ids = copy_checkpoint(directory("guard", form), tmp_path / "own"), random_ids(40)
    expected = TransformersEngine(path, as_served=True).session(capacity=40).append(ids)
    edit_config(path, attention_chunk_size=10**6)  # transformers has no number for chunks that never end
    for dtype, most in ((torch.float32, 1e-6), (torch.bfloat16, in_bfloat16)):
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        with torch.inference_mode():
            assert_close(model(torch.from_numpy(ids[None])).logits.float().numpy(), expected, most)


@pytest.mark.parametrize("form", FORMS)
def test_its_weights_are_read_by_name(directory: Any, form: str) -> None:
    path = directory("maverick", form)
    weights, values = open_weights(path), load_file(float_of(path) / "model.safetensors")
    shapes, stored = tensors(TransformersEngine(path).config), load_tensors(path)
    assert set(weights.names) == {name for name in shapes if of_mlps(name) and "norm" not in name}
    for name in weights.names:
        np.testing.assert_array_equal(weights.rows(name, slice(None)), values[name])
    np.testing.assert_array_equal(weights.rows(weights.names[0], slice(1, 3)), values[weights.names[0]][1:3])
    assert weights.rows("model.norm.weight", slice(None)) is None
    assert sum(weights.stored_bytes().values()) == sum(array.nbytes for array in stored.values())
    assert weights.input_scales == {}


def test_a_model_that_sees(tmp_path: Path) -> None:
    """The tower that transformers loaded makes the rows, and they take the places of the image tokens."""
    write_sample(tmp_path / "source", "maverick", "tiny", seed=3, vision=True)
    path = written(tmp_path / "source", tmp_path / "written", FORMS["W4A16"])
    engine = open_judged(path)
    assert engine.features is not None and engine.manifest.vision is not None
    assert engine.manifest.precision["vision"] == "fp32"
    ids = random_ids(30)
    ids[ids == engine.manifest.vision.image_token_id] = 0
    expected = HFReference(float_of(path)).logits(ids[None])
    assert_close(engine.session(capacity=30).append(ids), expected, 1e-5)


def test_what_l4export_does_not_run_is_refused(directory: Any) -> None:
    with pytest.raises(InputError, match="is a checkpoint, which vLLM, SGLang and transformers run, not l4export"):
        load(directory("guard", "FP8"))


def test_a_provider_is_refused(directory: Any) -> None:
    with pytest.raises(InputError, match=r"^--provider: .* is a checkpoint, which transformers runs on a CPU"):
        open_judged(directory("guard", "FP8"), provider="cpu")


@pytest.mark.parametrize("package", ["torch", "transformers", "compressed_tensors"])
def test_a_missing_package_is_named(directory: Any, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentLacks, match=rf"{package.replace('_', '-')}.*pip install 'l4export\[reference\]'"):
        TransformersEngine(directory("guard", "FP8"))


@pytest.fixture
def own(workshop: Workshop, tmp_path: Path) -> Path:
    """A written checkpoint to be damaged."""
    return written(workshop.checkpoint("guard"), tmp_path / "own", FORMS["W4A16"])


def test_a_file_that_was_changed_is_refused(own: Path) -> None:
    edit_config(own, rms_norm_eps=2e-5)
    with pytest.raises(InputError, match=r"config\.json has been changed; write or copy the checkpoint again"):
        TransformersEngine(own)
    (own / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is missing or not a regular file; write or copy"):
        TransformersEngine(own)


def test_a_tensor_that_transformers_does_not_take_is_refused(own: Path) -> None:
    """It would go on without it: l4export does not ask what else there is."""
    weights = load_file(own / "model.safetensors")
    save_file({**weights, "model.other.weight": np.zeros(3, np.float32)}, own / "model.safetensors")
    sign(own)
    with pytest.raises(InputError, match=r"transformers has no place for the tensor 'model\.other\.weight'"):
        TransformersEngine(own)


def test_a_layer_that_config_json_ignores_is_refused(own: Path) -> None:
    """l4export tells quantised layers by their tensors, loaders by config.json: codes would be random weights."""
    raw = json.loads((own / "config.json").read_text())["quantization_config"]
    edit_config(own, quantization_config={**raw, "ignore": [*raw["ignore"], "re:.*layers.2.feed_forward.gate_proj"]})
    sign(own)
    with pytest.raises(InputError, match=r"transformers misses the tensor 'model\.layers\.2\.feed_forward\.gate_proj"):
        TransformersEngine(own)


def test_what_transformers_refuses_is_one_line(own: Path) -> None:
    raw = json.loads((own / "config.json").read_text())["quantization_config"]
    edit_config(own, quantization_config={**raw, "quantization_status": "another"})
    sign(own)
    with pytest.raises(InputError, match=r"transformers refuses it \(.*\); write it again$"):
        TransformersEngine(own)
