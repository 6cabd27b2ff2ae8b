"""The scales of a quantised KV cache: the text, what is measured on it, and builds that use them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kv_definitions import reading, scales_of
from l4export.calibration.kv_scales import METHOD
from l4export.calibration.text import FEWEST_KV_TOKENS, MOST_KV_TOKENS, TextReader
from l4export.checkpoint import read_config
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import plan_build
from l4export.engine.manifest import load_manifest
from l4export.errors import InputError
from workshop import LAYOUTS, ROOT, Workshop, copy_checkpoint

TRAINED = ROOT / "examples/kjv/model"
REACH = {"int8": 1.5 / 127, "int4": 0.8 / 7}
IDS = np.random.default_rng(11).integers(0, 256, 150).tolist()


@pytest.fixture
def ids_file(tmp_path: Path) -> Path:
    path = tmp_path / "ids.txt"
    path.write_text(", ".join(map(str, IDS)))
    return path


# The text


def reader(checkpoint: Path) -> TextReader:
    return TextReader(checkpoint, read_config(checkpoint))


def test_text_is_read_with_the_checkpoints_tokenizer(tmp_path: Path) -> None:
    text = "And the earth was without form, and void. " * 20
    (tmp_path / "t.txt").write_text(text)
    found = reader(TRAINED).for_scales(tmp_path / "t.txt")
    assert found.name == "t.txt" and found.tokens == len(found.sequences[0]) > 100
    assert found.sequences[0][0] == 0  # begin of text, as the tokenizer has it


def test_the_default_text_is_long_enough_for_a_good_tokenizer() -> None:
    found = reader(TRAINED).for_scales(None)
    assert found.name == "default_text.txt" and found.tokens == len(found.sequences[0]) == MOST_KV_TOKENS


def test_without_a_tokenizer_the_default_is_seeded_random_ids(workshop: Workshop) -> None:
    one, other = (reader(workshop.checkpoint("scout")).for_scales(None) for _ in "ab")
    assert one == other and (one.name, one.tokens) == ("random token ids, seed 0", MOST_KV_TOKENS)
    assert set(one.sequences[0]) == set(range(256))


@pytest.mark.parametrize("form", ["[{}]\n", "{}", "\n{}\n\n"])
def test_token_ids_are_read_as_they_are(workshop: Workshop, tmp_path: Path, form: str) -> None:
    (tmp_path / "ids").write_text(form.format("\n".join(map(str, IDS))))
    assert reader(workshop.checkpoint("scout")).for_scales(tmp_path / "ids").sequences == (tuple(IDS),)


def test_no_more_than_so_many_tokens_are_taken(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text(" ".join(["7"] * MOST_KV_TOKENS + ["999"]))
    assert reader(workshop.checkpoint("scout")).for_scales(tmp_path / "ids").tokens == MOST_KV_TOKENS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 tokens are too few"),
        (b"1 2 3", f"3 tokens are too few; give at least {FEWEST_KV_TOKENS}"),
        (b" ".join([b"1"] * 100 + [b"256"]), r"token id 256 is outside the vocabulary \(0 to 255\)"),
        (b" ".join([b"1"] * 100 + [b"9" * 30]), "outside the vocabulary"),
        (b"In the beginning", "has no tokenizer.json to read text with; give token ids"),
        (b"caf\xe9" * 100, "byte 3 is not UTF-8"),
        (None, "no such file"),
    ],
)
def test_texts_that_cannot_be_used_are_refused(
    workshop: Workshop, tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "t").write_bytes(content)
    with pytest.raises(InputError, match=f"--kv-calibrate {tmp_path / 't'}: .*{message}"):
        reader(workshop.checkpoint("scout")).for_scales(tmp_path / "t")


# What is measured


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", ["scout", "maverick"])
def test_scales_are_those_of_transformers_keys_and_values(
    workshop: Workshop, tmp_path: Path, ids_file: Path, variant: str, layout: str
) -> None:
    """150 tokens in chunks of 16 and sequences of at most 100; pairs of rotated channels share a scale."""
    options = BuildOptions(kv_layout=layout, kv_dtype="int4", kv_calibrate=ids_file, max_context=100)
    config = build(workshop.checkpoint(variant), tmp_path / "e", options).model
    peaks: dict[str, np.ndarray] = {}
    for part in (IDS[:100], IDS[100:]):
        with reading(None) as own:
            workshop.reference(variant).logits(np.asarray([part]))
        for name, x in own.items():
            layer, kind = int(name.split(".")[1]), name.split(".")[2]
            size = np.abs(x)
            if kind == "key" and config.rope_layers[layer]:
                size = np.repeat(np.hypot(x[..., 0::2], x[..., 1::2]), 2, axis=-1)
            peaks[name] = np.maximum(peaks.get(name, 0), size.max(axis=1, keepdims=True))
    found = scales_of(tmp_path / "e")
    assert found.keys() == peaks.keys()
    for name, peak in peaks.items():
        np.testing.assert_allclose(found[name], REACH["int4"] * peak, rtol=1e-4)


def test_a_channel_that_stays_zero_gets_its_heads_largest_scale(
    workshop: Workshop, tmp_path: Path, ids_file: Path
) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.0.self_attn.v_proj.weight"][:17] = 0  # all of head 0, one channel of head 1
    save_file(weights, checkpoint / "model.safetensors")
    build(checkpoint, tmp_path / "e", BuildOptions(kv_dtype="int8", kv_calibrate=ids_file))
    found = scales_of(tmp_path / "e")["past_key_values.0.value"][:, 0]
    np.testing.assert_allclose(found[0], REACH["int8"])
    assert found[1, 0] == found[1].max() and (found[1, 1:] > 0).all()


def test_values_that_are_not_finite_are_refused(workshop: Workshop, tmp_path: Path, ids_file: Path) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.2.self_attn.v_proj.weight"] *= 1e38
    weights["model.layers.2.input_layernorm.weight"] *= 1e3
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(InputError, match=r"past_key_values\.2\.value: not finite on the calibration text"):
        build(checkpoint, tmp_path / "e", BuildOptions(kv_dtype="int8", kv_calibrate=ids_file))
    assert not (tmp_path / "e").exists()


# Builds


def test_the_calibration_is_in_the_manifest(workshop: Workshop, tmp_path: Path, ids_file: Path) -> None:
    options = BuildOptions(kv_dtype="int8", kv_calibrate=ids_file)
    manifest = build(workshop.checkpoint("scout"), tmp_path / "e", options)
    assert manifest.precision["kv_cache"] == "int8" and manifest.precision["compute"] == "fp32"
    record = manifest.options["decoder"]["kv_calibration"]
    assert record.keys() == {"text", "sha256", "tokens", "method"}
    assert (record["text"], record["tokens"], record["method"]) == ("ids.txt", len(IDS), METHOD)
    assert load_manifest(tmp_path / "e") == manifest
    assert "quantize_kv_cache" in manifest.passes


def test_another_kv_dtype_takes_over_the_weights(workshop: Workshop, tmp_path: Path, ids_file: Path) -> None:
    checkpoint, engine = workshop.checkpoint("scout"), tmp_path / "e"
    notices: list[str] = []
    build(checkpoint, engine, BuildOptions())
    for kv_dtype in ("int8", "int4"):
        options = BuildOptions(kv_dtype=kv_dtype, kv_calibrate=ids_file, force=True)
        build(checkpoint, engine, options, on_notice=notices.append)
        build(checkpoint, tmp_path / kv_dtype, options)
        for path in engine.iterdir():
            assert path.read_bytes() == (tmp_path / kv_dtype / path.name).read_bytes()
    taken, calibrating = "the weights have not changed; they are taken over", "calibrating the KV cache: 150 tokens"
    assert [notice.startswith((taken, calibrating)) for notice in notices] == [True] * 4
    notices.clear()
    build(
        checkpoint, engine, BuildOptions(kv_dtype="int4", kv_calibrate=ids_file, force=True), on_notice=notices.append
    )
    assert notices == ["e is up to date; every file was checked, none was written"]


def test_a_build_that_is_interrupted_while_it_calibrates_goes_on(
    workshop: Workshop, tmp_path: Path, ids_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    checkpoint, options = workshop.checkpoint("scout"), BuildOptions(kv_dtype="int8", kv_calibrate=ids_file)
    notices: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr("l4export.compiler.measure.kv_scales", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(checkpoint, tmp_path / "e", options)
    # what is read for the scales changes no weight, so another choice goes on with them too
    build(checkpoint, tmp_path / "e", BuildOptions(kv_dtype="int4", kv_calibrate=ids_file), on_notice=notices.append)
    assert notices[0].startswith("resuming: ")
    build(checkpoint, tmp_path / "undisturbed", BuildOptions(kv_dtype="int4", kv_calibrate=ids_file))
    for path in (tmp_path / "e").iterdir():
        assert path.read_bytes() == (tmp_path / "undisturbed" / path.name).read_bytes()


def test_dumped_stages_have_the_engines_scales(workshop: Workshop, tmp_path: Path, ids_file: Path) -> None:
    options = BuildOptions(kv_dtype="int8", kv_calibrate=ids_file, dump_ir=tmp_path / "ir")
    manifest = build(workshop.checkpoint("scout"), tmp_path / "e", options)
    last = f"{len(manifest.passes):02d}-set_kv_scales.onnx"
    (tmp_path / "decoder.onnx").write_bytes((tmp_path / "ir" / last).read_bytes())
    expected = scales_of(tmp_path / "e")
    for name, scale in scales_of(tmp_path).items():
        np.testing.assert_array_equal(scale, expected[name])


def test_planning_measures_nothing(workshop: Workshop, ids_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    planned = plan_build(workshop.checkpoint("scout"), BuildOptions(kv_dtype="int4", kv_calibrate=ids_file))
    assert planned.data_files == plan_build(workshop.checkpoint("scout"), BuildOptions()).data_files
