"""Adapters in PEFT's layout: what each form does to which weight, and what is refused."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import Weights, of_experts, pair, product, write_adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meta_folders import write_meta_folder
from safetensors.numpy import load_file, save_file

from l4export.checkpoint import open_checkpoint
from l4export.checkpoint.adapter_config import parse_adapter_config
from l4export.checkpoint.sample import write_sample
from l4export.errors import InputError
from l4export.model.tensors import tensors, vision_tensors
from quantised_checkpoints import Linears, quantised, quantised_by_fbgemm
from workshop import Workshop, copy_checkpoint, edit_config

EXPERTS, HIDDEN, INNER = 4, 64, 32
LAYER = "model.layers.1"
MOE = f"{LAYER}.feed_forward.experts"
Q = f"{LAYER}.self_attn.q_proj"


def check(source: Path, adapters: list[Path], expected: Weights) -> None:
    """Those weights are these, and all others are as they were."""
    plain, merged = open_checkpoint(source), open_checkpoint(source, adapters)
    assert not merged.is_plain()
    for name, shape in tensors(plain.config).items():
        got, before = merged.tensor(name, shape).read(), plain.tensor(name, shape).read()
        if name in expected:
            assert np.abs(got - before).max() > 0.01
            assert np.abs(got - expected[name]).max() < 1e-6 * np.abs(expected[name]).max()  # float32 against float64
            assert merged.tensor(name, shape).dtype == np.float32
        else:
            np.testing.assert_array_equal(got, before)


def base(source: Path) -> dict[str, np.ndarray]:
    return {name: values.astype(np.float64) for name, values in load_file(source / "model.safetensors").items()}


def parameters(turned: bool = False) -> Weights:
    """Both parameters of a layer's experts; `turned` as PEFT had them before."""
    r = 2 * EXPERTS
    down = pair(MOE, HIDDEN if turned else INNER, INNER if turned else HIDDEN, r)
    return pair(f"{MOE}.base_layer", 2 * INNER if turned else HIDDEN, HIDDEN if turned else 2 * INNER, r) | down


@pytest.mark.parametrize("form", ["Meta's folder", "int4", "experts in FP8"])
def test_over_a_base_in_another_form(workshop: Workshop, tmp_path: Path, form: str) -> None:
    """A linear layer and a parameter of experts: as over the float checkpoint that the form stands for."""
    source = workshop.checkpoint("scout")
    if form == "Meta's folder":
        same, other = source, write_meta_folder(source, tmp_path / "m", 2)
    elif form == "int4":
        other, same = quantised(source, tmp_path / "q", Linears(packed=True, bits=4, strategy="group"))
    else:
        other, same = quantised_by_fbgemm(source, tmp_path / "q")
    adapter = write_adapter(tmp_path / "a", pair(Q, 64, 64) | pair(MOE, INNER, HIDDEN, 2 * EXPERTS))
    expected, merged = open_checkpoint(same, [adapter]), open_checkpoint(other, [adapter])
    assert expected.adapters[0].changed == merged.adapters[0].changed
    for name, shape in tensors(expected.config).items():
        np.testing.assert_array_equal(merged.tensor(name, shape).read(), expected.tensor(name, shape).read(), name)


@pytest.mark.parametrize("variant", ["scout", "maverick"])
def test_linear_layers(workshop: Workshop, tmp_path: Path, variant: str) -> None:
    source, shared = workshop.checkpoint(variant), f"{LAYER}.feed_forward.shared_expert.down_proj"
    found = pair(Q, 64, 64) | pair(shared, HIDDEN, INNER)
    weights = base(source)
    expected = {f"{name}.weight": weights[f"{name}.weight"] + product(found, name) for name in (Q, shared)}
    adapter = write_adapter(tmp_path / "a", found, target_modules=["q_proj", "shared_expert.down_proj"])
    check(source, [adapter], expected)


@pytest.mark.parametrize("turned", [False, True])
def test_experts_as_parameters(workshop: Workshop, tmp_path: Path, turned: bool) -> None:
    """Which is which and which way round is told by shapes: of the square gates and ups, by those of the other."""
    source, found = workshop.checkpoint("scout"), parameters(turned)
    change = {"gate_up_proj": f"{MOE}.base_layer", "down_proj": MOE}
    products = {name: of_experts(found, module, EXPERTS) for name, module in change.items()}
    expected = {
        f"{MOE}.{name}": base(source)[f"{MOE}.{name}"] + (by.transpose(0, 2, 1) if turned else by)
        for name, by in products.items()
    }
    targets = ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]
    check(source, [write_adapter(tmp_path / "a", found, target_parameters=targets)], expected)
    alone = {name: values for name, values in found.items() if "base_layer" not in name}
    check(source, [write_adapter(tmp_path / "b", alone)], {f"{MOE}.down_proj": expected[f"{MOE}.down_proj"]})


@pytest.mark.parametrize("version", ["0.17.1", "0.18.0", "0.18.1"])
def test_square_experts_alone(workshop: Workshop, tmp_path: Path, version: str) -> None:
    """Releases before 0.19 had the experts of every model this way round."""
    source, found = workshop.checkpoint("scout"), pair(MOE, HIDDEN, 2 * INNER, 2 * EXPERTS)
    name = f"{MOE}.gate_up_proj"
    adapter = write_adapter(tmp_path / "a", found, peft_version=version)
    check(source, [adapter], {name: base(source)[name] + of_experts(found, MOE, EXPERTS).transpose(0, 2, 1)})


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_experts_as_linear_layers(workshop: Workshop, tmp_path: Path, dora: bool, one_by_one: bool) -> None:
    """Of some experts alone, merged into one tensor of a layer or into linear layers."""
    source, weights = workshop.checkpoint("scout"), base(workshop.checkpoint("scout"))
    expected = {f"{MOE}.{name}": weights[f"{MOE}.{name}"].copy() for name in ("gate_up_proj", "down_proj")}
    found: Weights = {}
    for module, out, inner, matrix in (
        (f"{MOE}.0.gate_proj", INNER, HIDDEN, expected[f"{MOE}.gate_up_proj"][0, :, :INNER]),
        (f"{MOE}.2.up_proj", INNER, HIDDEN, expected[f"{MOE}.gate_up_proj"][2, :, INNER:]),
        (f"{MOE}.3.down_proj", HIDDEN, INNER, expected[f"{MOE}.down_proj"][3]),
    ):
        found |= pair(module, out, inner)
        merged = matrix.T + product(found, module)
        if dora:
            magnitude = found[f"{module}.lora_magnitude_vector"] = np.linspace(0.5, 2, out, dtype=np.float32)
            merged *= magnitude[:, None] / np.linalg.norm(merged, axis=1, keepdims=True)
        matrix[...] = merged.T
    if one_by_one:
        source = copy_checkpoint(source, tmp_path / "c")
        stored = load_file(source / "model.safetensors")
        for layer in range(4):
            name = f"model.layers.{layer}.feed_forward.experts"
            both, down = stored.pop(f"{name}.gate_up_proj"), stored.pop(f"{name}.down_proj")
            each = {"gate_proj": both[:, :, :INNER], "up_proj": both[:, :, INNER:], "down_proj": down}
            for linear, stack in each.items():
                for e in range(EXPERTS):
                    stored[f"{name}.{e}.{linear}.weight"] = np.ascontiguousarray(stack[e].T)
        save_file(stored, source / "model.safetensors")
    check(source, [write_adapter(tmp_path / "a", found, use_dora=dora)], expected)


def test_head_and_embedding(workshop: Workshop, tmp_path: Path) -> None:
    """Saved as a whole, or with matrices; of an embedding with matrices PEFT saves the base too."""
    source, random = workshop.checkpoint("scout"), np.random.default_rng(1)
    head, embedding = (random.standard_normal((256, HIDDEN), np.float32) for _ in range(2))
    a, b = random.standard_normal((2, 256), np.float32), random.standard_normal((HIDDEN, 2), np.float32)
    found = {
        "lm_head.weight": head,
        "model.embed_tokens.base_layer.weight": embedding,
        "model.embed_tokens.lora_embedding_A": a,
        "model.embed_tokens.lora_embedding_B": b,
    }
    changed = embedding + 1.5 * (b.astype(np.float64) @ a).T
    adapter = write_adapter(tmp_path / "a", found, target_modules=["embed_tokens"], modules_to_save=["lm_head"])
    check(source, [adapter], {"lm_head.weight": head, "model.embed_tokens.weight": changed})


def test_scales(workshop: Workshop, tmp_path: Path) -> None:
    """alpha / r, or of rsLoRA alpha / sqrt(r), both by patterns: the first that a name ends with."""
    source, k = workshop.checkpoint("scout"), f"{LAYER}.self_attn.k_proj"
    found = pair(Q, 64, 64) | pair(k, 32, 64, rank=4)
    patterns = {"rank_pattern": {"k_proj": 4}, "alpha_pattern": {rf"^{Q}": 7, "layers.2.self_attn.k_proj": 9}}
    for stabilised, of_q, of_k in ((False, 7 / 2, 3 / 4), (True, 7 / 2**0.5, 3 / 2)):
        adapter = write_adapter(tmp_path / f"{stabilised}", found, use_rslora=stabilised, **patterns)
        scales = {Q: of_q, k: of_k}
        check(
            source,
            [adapter],
            {f"{name}.weight": base(source)[f"{name}.weight"] + product(found, name, s) for name, s in scales.items()},
        )
        about = open_checkpoint(source, [adapter]).adapters[0].to_dict()
        assert (about["rank"], about["alpha"]) == ([2, 4], [3, 7])
        assert about["type"] == ("rank-stabilised LoRA" if stabilised else "LoRA")
        assert about["changes"] == ["attention q", "attention k"] and about["weights"] == 2


def test_one_after_the_other(workshop: Workshop, tmp_path: Path) -> None:
    """The order counts: DoRA sees what was merged before it."""
    source, first, second = workshop.checkpoint("scout"), pair(Q, 64, 64), pair(Q, 64, 64, seed=1)
    magnitude = np.linspace(0.5, 2, 64, dtype=np.float32)
    lora = write_adapter(tmp_path / "a", first)
    dora = write_adapter(tmp_path / "b", second | {f"{Q}.lora_magnitude_vector": magnitude}, use_dora=True)
    weight = base(source)[f"{Q}.weight"]

    def resized(matrix: np.ndarray) -> np.ndarray:
        scaled: np.ndarray = magnitude[:, None] * matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        return scaled

    both = weight + product(first, Q) + product(second, Q)
    check(source, [lora, dora], {f"{Q}.weight": resized(both)})
    check(source, [dora, lora], {f"{Q}.weight": resized(weight + product(second, Q)) + product(first, Q)})


def test_a_model_that_sees(tmp_path: Path) -> None:
    """An adapter of all linear layers has those of the tower; one of the text model alone names it in either way."""
    write_sample(tmp_path / "c", "scout", "tiny", seed=3, vision=True)
    plain, fc1 = open_checkpoint(tmp_path / "c"), "vision_model.model.layers.0.mlp.fc1"
    shape = vision_tensors(plain.vision_config(), HIDDEN)[f"{fc1}.weight"]
    found = pair(f"language_model.{Q}", 64, 64) | pair(fc1, *shape)
    merged = open_checkpoint(tmp_path / "c", [write_adapter(tmp_path / "a", found, target_modules="all-linear")])
    expected = plain.vision_tensor(f"{fc1}.weight", shape).read() + product(found, fc1)
    np.testing.assert_allclose(merged.vision_tensor(f"{fc1}.weight", shape).read(), expected, rtol=0, atol=1e-5)
    text = {name.replace("language_model.", ""): values for name, values in found.items() if fc1 not in name}
    other = open_checkpoint(tmp_path / "c", [write_adapter(tmp_path / "b", text)])
    for opened in (merged, other):
        np.testing.assert_allclose(
            opened.tensor(f"{Q}.weight", (64, 64)).read(),
            plain.tensor(f"{Q}.weight", (64, 64)).read() + product(text, Q),
            rtol=0,
            atol=1e-5,  # float32 of values of about 3
        )


def test_what_is_opened_is_told_apart(workshop: Workshop, tmp_path: Path) -> None:
    source, found = workshop.checkpoint("scout"), pair(Q, 64, 64)
    a, b = write_adapter(tmp_path / "a", found), write_adapter(tmp_path / "b", found, lora_alpha=4)
    c = write_adapter(tmp_path / "c", pair(f"{LAYER}.self_attn.o_proj", 64, 64))
    digests = {open_checkpoint(source, list(adapters)).header_digest() for adapters in ((), (a,), (b,), (c,), (a, c))}
    assert len(digests) == 5
    parts = open_checkpoint(source, [a, c]).tensor(f"{Q}.weight", (64, 64)).parts
    assert {part.file_name for part in parts} == {"model.safetensors", "adapter_model.safetensors.1"}


def test_another_name_of_the_base_is_told(workshop: Workshop, tmp_path: Path) -> None:
    source = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    adapter = write_adapter(tmp_path / "a", pair(Q, 64, 64), base_model_name_or_path="meta-llama/Scout")
    assert open_checkpoint(source, [adapter]).notes() == []
    edit_config(source, _name_or_path="somewhere/else")
    (note,) = open_checkpoint(source, [adapter]).notes()
    assert "was trained on 'meta-llama/Scout', and config.json calls this model 'somewhere/else'" in note


def only_a() -> Weights:
    return {name: values for name, values in pair(Q, 64, 64).items() if "lora_A" in name}


def not_a_number() -> Weights:
    found = pair(Q, 64, 64)
    found[f"{Q}.lora_B.weight"][3, 1] = np.nan
    return found


MAGNITUDE = {f"{Q}.lora_magnitude_vector": np.ones(64, np.float32)}

REFUSED: dict[str, tuple[Weights, dict[str, Any], str]] = {
    "kind": (pair(Q, 64, 64), {"peft_type": "LOHA"}, "peft_type is 'LOHA'; only LORA"),
    "no kind": (pair(Q, 64, 64), {"peft_type": None}, "peft_type is null"),
    "rank 0": (pair(Q, 64, 64), {"r": 0}, "r is 0; expected an integer from 1"),
    "no alpha": (pair(Q, 64, 64), {"lora_alpha": None}, "lora_alpha is null; expected a finite number"),
    "bias": (pair(Q, 64, 64), {"bias": "all"}, "bias is 'all'; only adapters without biases"),
    "bias of B": (pair(Q, 64, 64), {"lora_bias": True}, "'lora_bias' is set, and not known here"),
    "variant": (pair(Q, 64, 64), {"arrow_config": {"k": 1}}, "'arrow_config' is set, and not known"),
    "pissa": (pair(Q, 64, 64), {"init_lora_weights": "pissa"}, "is 'pissa', which changes the base model's"),
    "pattern": (pair(Q, 64, 64), {"rank_pattern": {"(a+)+": 2}}, "has the pattern '(a+)+'"),
    "ranks": (pair(Q, 64, 64), {"r": 3}, "lora_A [2, 64] and lora_B [64, 2] are not of the rank 3"),
    "target": (pair(Q, 64, 64), {"target_modules": ["q_proj", "w1"]}, "the target 'w1' has no tensor"),
    "saved": (pair(Q, 64, 64), {"modules_to_save": ["lm_head"]}, "the saved module 'lm_head' has no tensor"),
    "targets": (pair(Q, 64, 64), {"target_modules": [1]}, "target_modules is an array; expected an array of names"),
    "other width": (pair(Q, 64, 96), {}, "is for a weight of shape [64, 96], and '" + Q + ".weight' has"),
    "other experts": (pair(MOE, 65, 64, 8), {}, "is for a weight of shape [65, 64], and '" + MOE),
    "fewer experts": (
        pair(MOE, INNER, HIDDEN, 6),
        {},
        "not of the rank 2 that adapter_config.json gives to each of 4",
    ),
    "no such module": (pair(f"{LAYER}.attn.qkv", 64, 64), {}, "belongs to no weight of the model"),
    "no such expert": (pair(f"{MOE}.4.up_proj", INNER, HIDDEN), {}, "belongs to no weight of the model"),
    "a norm": (pair("model.norm", 64, 64), {}, "belongs to no weight of the model"),
    "left over": ({**pair(Q, 64, 64), f"{Q}.lora_B.bias": np.ones(64, np.float32)}, {}, "belongs to no weight"),
    "no B": (only_a(), {}, "has no lora_B beside it"),
    "nan": (not_a_number(), {}, f"{Q}.lora_B.weight' has NaN or infinite elements"),
    "integers": ({f"{Q}.lora_A.weight": np.ones((2, 64), np.int8)}, {}, "has dtype I8"),
    "no magnitude": (pair(Q, 64, 64), {"use_dora": True}, "has no lora_magnitude_vector; use_dora says"),
    "magnitude": (pair(Q, 64, 64) | MAGNITUDE, {}, "has a lora_magnitude_vector; use_dora says otherwise"),
    "dora of experts": (parameters(), {"use_dora": True}, "DoRA of embeddings and of experts as parameters"),
    **{
        f"square, {version}": (
            pair(MOE, 64, 64, 8),
            {"peft_version": version},
            "which way round the adapter has them cannot be told",
        )
        for version in (None, "0.19.0", "0.19.1", "0.21.2", "0.18.1.dev0@0123abc", "1.0.0", "0.18", 0.18, [0], "x")
    },
    "twice": (pair(Q, 64, 64) | pair(f"language_model.{Q}", 64, 64), {}, "is the same as"),
    "both kinds": (pair(Q, 64, 64) | {f"{Q}.lora_embedding_A": np.ones((2, 64), np.float32)}, {}, "has no lora_emb"),
    "third": (pair(MOE, INNER, 64, 8) | pair(f"{MOE}.base_layer", INNER, 64, 8), {}, "is a second change of"),
    "nothing": ({}, {}, "holds no tensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(workshop: Workshop, tmp_path: Path, case: str) -> None:
    found, config, words = REFUSED[case]
    adapter = write_adapter(tmp_path / "a", found, **config)
    with pytest.raises(InputError) as error:
        open_checkpoint(workshop.checkpoint("scout"), [adapter])
    message = str(error.value)
    assert words in message and str(adapter) in message and "\n" not in message and len(message) < 500, message


WORDS = st.sampled_from(["", "q_proj", "(a+)+", "^", ".", "gaussian"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)
FIELDS = ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_dora", "target_modules", "init_lora_weights", "xyz"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
def test_any_config_is_read_or_refused(fields: dict[str, Any]) -> None:
    raw = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, **fields}
    try:
        config = parse_adapter_config(raw, Path("adapter_config.json"))
    except InputError as error:
        assert str(error).startswith("adapter_config.json: ") and len(str(error)) < 500
    else:
        assert np.isfinite(config.scale_of(Q)) and not fields.get("xyz")


NAMES = st.builds(
    "".join,
    st.lists(
        st.sampled_from([Q, MOE, "lm_head", ".base_layer", ".3", ".gate_proj", ".down_proj", ".weight", ".lora_A"])
        | st.sampled_from([".lora_B.weight", ".lora_embedding_A", ".lora_magnitude_vector", "language_model.", ".x"]),
        max_size=4,
    ),
)
SHAPES = st.sampled_from([(), (2,), (64,), (2, 64), (64, 2), (8, 64), (64, 8), (32, 8), (8, 32), (256, 64), (0, 2)])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.dictionaries(NAMES, SHAPES, max_size=4))
def test_any_tensors_are_merged_or_refused(workshop: Workshop, tmp_path: Path, found: dict[str, Any]) -> None:
    """Nothing but a refusal, or a model whose every weight can be read."""
    path = Path(tempfile.mkdtemp(dir=tmp_path)) / "a"
    write_adapter(path, {name: np.ones(shape, np.float32) for name, shape in found.items()})
    try:
        opened = open_checkpoint(workshop.checkpoint("scout"), [path])
    except InputError as error:
        assert str(path) in str(error) and len(str(error)) < 900
        return
    for name, shape in tensors(opened.config).items():
        assert opened.tensor(name, shape).read().shape == shape


def test_directories_that_are_no_adapter(workshop: Workshop, tmp_path: Path) -> None:
    source, found = workshop.checkpoint("scout"), pair(Q, 64, 64)

    def refused(path: Path, words: str) -> None:
        with pytest.raises(InputError, match=words):
            open_checkpoint(source, [path])

    refused(tmp_path / "none", r"adapter_config\.json is missing; give a directory that PEFT saved")
    weights = write_adapter(tmp_path / "a", found) / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    refused(tmp_path / "a", "truncated")
    weights.rename(tmp_path / "a" / "adapter_model.bin")
    refused(tmp_path / "a", "adapter_model.bin is a pickle, which is never read")
    (tmp_path / "a" / "adapter_model.bin").unlink()
    refused(tmp_path / "a", r"adapter_model\.safetensors is missing; is the download complete")
    weights.write_bytes(whole.replace(b"base_model.model.", b"base_model.modeI."))
    refused(tmp_path / "a", "belongs to no weight")
    (tmp_path / "a" / "adapter_config.json").write_text("[]")
    refused(tmp_path / "a", "expected a JSON object")


def test_an_embedding_that_is_the_head(workshop: Workshop, tmp_path: Path) -> None:
    source = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    weights = load_file(source / "model.safetensors")
    save_file(
        {name: values for name, values in weights.items() if name != "lm_head.weight"}, source / "model.safetensors"
    )
    edit_config(source, tie_word_embeddings=True)
    other = {"model.embed_tokens.weight": weights["lm_head.weight"]}
    with pytest.raises(InputError, match="changes the embedding, which is this model's head too"):
        open_checkpoint(source, [write_adapter(tmp_path / "a", other)])
