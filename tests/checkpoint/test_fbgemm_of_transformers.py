"""Checkpoints that transformers' own code for fbgemm_fp8 writes, and what its experts compute with them.

The kernels of fbgemm run on GPUs alone: the two that are used stand here as their definitions. Which numbers share a
scale, how the tensors are called and laid out, and what is multiplied with what is transformers' (`integrations/
fbgemm_fp8.py`).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import Llama4ForCausalLM
from transformers.integrations import fbgemm_fp8

from l4export.checkpoint import open_checkpoint
from l4export.model.tensors import tensors
from workshop import Workshop, copy_checkpoint, edit_config


def quantize_fp8_per_row(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, n] -> FP8 codes [rows, n] and float32 scales [rows]: the largest of a row is 448."""
    scales = values.float().abs().amax(dim=1) / 448
    return (values.float() / scales[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn), scales


def f8f8bf16_rowwise(
    x: torch.Tensor, w: torch.Tensor, of_x: torch.Tensor, of_w: torch.Tensor, **_: Any
) -> torch.Tensor:
    """x w^T of codes [t, in] and [out, in], both with a scale a row; here in float32."""
    return (x.float() * of_x[:, None]) @ (w.float() * of_w.reshape(-1, 1)).T


@pytest.fixture
def model(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Llama4ForCausalLM:
    """A Maverick whose linear layers and experts transformers has replaced by those of fbgemm."""
    monkeypatch.setattr(fbgemm_fp8, "get_quantize_fp8_per_row", lambda: quantize_fp8_per_row)
    monkeypatch.setattr(fbgemm_fp8, "init_empty_weights", lambda **_: contextlib.nullcontext(), raising=False)
    monkeypatch.setattr(fbgemm_fp8.torch.ops, "fbgemm", SimpleNamespace(f8f8bf16_rowwise=f8f8bf16_rowwise))
    made: Llama4ForCausalLM = Llama4ForCausalLM.from_pretrained(workshop.checkpoint("maverick"), dtype=torch.bfloat16)
    return made


def written(model: Llama4ForCausalLM) -> dict[str, torch.Tensor]:
    """The tensors of the model after its conversion, as its state dict has them."""
    floats = {name: values.clone() for name, values in model.state_dict().items()}
    fbgemm_fp8.replace_with_fbgemm_fp8_linear(model, ["lm_head", "router"])
    convert = fbgemm_fp8.FbgemmFp8Quantize(None).convert
    found = {}
    for name, values in floats.items():
        parent = model.get_submodule(name.rpartition(".")[0])
        of_fbgemm = isinstance(parent, fbgemm_fp8.FbgemmFp8Linear | fbgemm_fp8.FbgemmFp8Llama4TextExperts)
        found |= convert({name: [values]}, model) if of_fbgemm else {name: values}
    return {name: values.detach().contiguous() for name, values in found.items()}


def test_what_transformers_writes_is_read_as_it_computes(
    model: Llama4ForCausalLM, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = written(model)
    model.load_state_dict(found, assign=True)  # names, shapes and dtypes are those of its modules
    path = tmp_path / "fbgemm"
    copy_checkpoint(workshop.checkpoint("maverick"), path)
    edit_config(path, quantization_config={"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]})
    save_file(found, path / "model.safetensors")
    checkpoint, names, quantised = open_checkpoint(path), set[str](), 0
    weights = {name: checkpoint.tensor(name, shape) for name, shape in tensors(checkpoint.config).items()}
    for name, weight in weights.items():
        names |= {part.name for part in weight.parts}
        quantised += len(weight.parts) == 2
        if len(weight.parts) == 2 and name.endswith(".weight"):
            expected = found[name].float() * found[f"{name}_scale"]
            np.testing.assert_array_equal(weight.read(), expected.numpy())
    assert names == set(found) and quantised == 2 * 7 + 2 * (4 + 2 + 3)
    # Experts by what they compute: of activations that are not rounded, so that weights alone decide.
    monkeypatch.setattr(fbgemm_fp8, "quantize_fp8_per_row", lambda x, *_: (x, torch.ones(len(x))))
    hidden = torch.from_numpy(np.random.default_rng(0).standard_normal((4 * 3, 64), np.float32))
    for layer in (1, 3):
        module = f"model.layers.{layer}.feed_forward.experts"
        gate_up, down = (torch.from_numpy(weights[f"{module}.{name}"].read()) for name in ("gate_up_proj", "down_proj"))
        gate, up = torch.bmm(hidden.reshape(4, 3, 64), gate_up).chunk(2, dim=2)
        expected = torch.bmm(torch.nn.functional.silu(gate) * up, down).reshape(-1, 64)
        with torch.no_grad():
            got = model.get_submodule(module)(hidden)
        assert got.dtype == torch.float32 and expected.abs().max() > 0.5
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
