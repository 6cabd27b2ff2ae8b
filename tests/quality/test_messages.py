"""Quality on conversations with images: figures by their definitions, what is scored, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conversations import said, shown_and_answered, talking_checkpoint, words, write_conversations

from l4export import runtimes
from l4export.calibration.text import TextReader
from l4export.checkpoint import open_checkpoint
from l4export.cli import main
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.errors import InputError
from l4export.inspection.dequantized_weights import dequantized_weights
from l4export.model.weight_names import kind_of
from l4export.quality.measure import measure_quality
from l4export.quality.window_logits import WindowLogits
from l4export.quantization.policy import Policy, Rule
from l4export.reference import variants
from l4export.reference.token_scores import log_probabilities
from l4export.reference.transformers_model import HFReference
from l4export.reference.vision_tower import HFVisionTower
from l4export.reference.window import Window
from workshop import copy_checkpoint

PATCH = 236
ROUGH = Policy((Rule(("model.layers.*_proj.weight", "model.embed_tokens.weight"), "int4", 32),), 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint `c`, an engine of it in float32, a rough one, and one that sees nothing."""
    folder = tmp_path_factory.mktemp("room")
    checkpoint = talking_checkpoint(folder / "c")
    build(checkpoint, folder / "float", BuildOptions(max_context=256))
    build(checkpoint, folder / "rough", BuildOptions(max_context=256, policy=ROUGH))
    build(checkpoint, folder / "blind", BuildOptions(max_context=256, vision="none"))
    return folder


@pytest.fixture
def text(folder: Path) -> Path:
    return shown_and_answered(folder / "m.jsonl")


def windows_of(folder: Path, text: Path) -> list[Window]:
    opened = open_checkpoint(folder / "c")
    return TextReader(folder / "c", opened.config, opened.vision_config()).windows("--text", text, 256).windows


def log_probabilities_of(reference: HFReference, tower: HFVisionTower, window: Window) -> np.ndarray:
    """Of transformers' whole model, at the positions that are scored."""
    images = window.images()
    assert images is not None
    reference.see(tower.features(images.tiles), PATCH)
    return log_probabilities(reference.logits(np.asarray([window.ids]))[0][window.positions])


def test_a_float_engine_loses_nothing(folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in pieces of 13 logits, too: answers begin and end within them."""
    monkeypatch.setattr(variants, "_LOGIT_BYTES", 13 * 4 * 256)
    report = measure_quality(folder / "float", folder / "c", text)
    assert report.tokens == 3 * 71 and report.window == 256
    assert report.kl.value < 1e-9 and report.top1_agreement.value == 1  # float32 sums in another order
    assert report.perplexity_ratio.value == pytest.approx(1, abs=1e-5)


def test_figures_are_those_of_their_definitions(folder: Path, text: Path) -> None:
    report = measure_quality(folder / "rough", folder / "c", text)
    engine, windows = runtimes.load(folder / "rough", threads=1), windows_of(folder, text)
    reference, tower = HFReference(folder / "c"), HFVisionTower(open_checkpoint(folder / "c"))
    expected = [log_probabilities_of(reference, tower, window) for window in windows]
    losses, kl = np.zeros(2), []
    for window, p in zip(windows, expected, strict=True):
        ids = np.asarray(window.ids)
        q = log_probabilities(engine.session().append(ids, images=window.images())[0][window.positions])
        kl += (np.exp(p) * (p - q)).sum(axis=1).tolist()
        losses -= [side[np.arange(len(p)), ids[window.positions + 1]].sum() for side in (p, q)]
    assert len(kl) == report.tokens == 3 * 71
    assert report.kl.value == pytest.approx(np.mean(kl), rel=1e-4)
    assert report.reference_perplexity.value == pytest.approx(np.exp(losses[0] / len(kl)), rel=1e-5)
    assert report.perplexity.value == pytest.approx(np.exp(losses[1] / len(kl)), rel=1e-5)
    # the embedding alone, which images do not go through
    reference.replace((name, values) for name, values in dequantized_weights(folder / "rough") if "embed" in name)
    alone = [log_probabilities_of(reference, tower, window) for window in windows]
    pairs = zip(expected, alone, strict=True)
    damage = np.concatenate([(np.exp(p) * (p - q)).sum(axis=1) for p, q in pairs]).mean()
    (part,) = [part for part in report.kinds if part.name == kind_of("model.embed_tokens.weight")]
    assert part.kl.value == pytest.approx(damage, rel=1e-3)


def test_images_count(folder: Path, text: Path) -> None:
    """Other pictures, other figures: they are seen, by both sides."""
    before = measure_quality(folder / "float", folder / "c", text, breakdown=False)
    text.write_text(text.read_text().replace("b.png", "a.png"))
    after = measure_quality(folder / "float", folder / "c", text, breakdown=False)
    assert after.kl.value < 1e-9 and after.perplexity.value != before.perplexity.value
    assert after.text["sha256"] != before.text["sha256"]


def test_logits_are_those_of_one_append(folder: Path, text: Path) -> None:
    engine = runtimes.load(folder / "float", threads=1)
    for window in windows_of(folder, text):
        whole = engine.session().append(np.asarray(window.ids), images=window.images())[0][window.positions]
        for size in (1, 50, 1000):
            reader = WindowLogits(engine, window)
            cuts = range(size, len(window.positions), size)
            pieces = np.concatenate([reader.at(piece) for piece in np.split(window.positions, cuts)])
            # float32 sums in another order
            np.testing.assert_allclose(pieces, whole, atol=1e-5 * np.abs(whole).max())


def test_what_is_refused(folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        InputError, match=r"--text .*: line 1: shows images, and .*blind sees none; build it from a check"
    ):
        measure_quality(folder / "blind", folder / "c", text)
    with pytest.raises(InputError, match=r"--text .*: line 1: has 86 tokens, and at most 80 are read; shorten it"):
        measure_quality(folder / "float", folder / "c", text, window=80)
    long = write_conversations(folder / "long.jsonl", [said("user", "a.png"), said("assistant", words(300, 1))])
    with pytest.raises(InputError, match=r"line 1: has 311 tokens, and at most 256 are read"):
        measure_quality(folder / "float", folder / "c", long)
    silent = write_conversations(folder / "silent.jsonl", [said("user", "a.png", words(200, 1))])
    arguments = ["quality", str(folder / "float"), "--reference", str(folder / "c"), "--text", str(silent)]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    told = capsys.readouterr().err
    assert caught.value.code == 2 and told.splitlines()[-1].endswith(
        "no assistant says anything, so there is no text to score; add an answer"
    )
    other = copy_checkpoint(folder / "c", tmp_path / "c")
    raw = (other / "config.json").read_text()
    (other / "config.json").write_text(raw.replace('"rope_theta": 10000.0', '"rope_theta": 500.0'))
    with pytest.raises(InputError, match=r"another model than the engine's \(rope_theta differs\)"):
        measure_quality(folder / "float", other, text)
