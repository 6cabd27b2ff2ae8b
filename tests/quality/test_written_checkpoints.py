"""`quality` takes a checkpoint for other programs: as it is served, and part by part as an engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conversations import shown_and_answered, talking_checkpoint
from signed_checkpoints import FORMS, written

from l4export.model.weight_names import kind_of, layer_of
from l4export.quality.document import sections_of
from l4export.quality.measure import measure_quality
from l4export.reference.token_scores import log_probabilities
from l4export.reference.transformers_engine import TransformersEngine
from l4export.reference.transformers_model import HFReference
from quantised_checkpoints import float_of
from workshop import Workshop, random_ids


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(random_ids(150, seed=1).tolist()))
    return path


@pytest.mark.parametrize(("variant", "form"), [("scout", "W4A16"), ("guard", "FP8")])
def test_figures_are_those_of_their_definitions(
    workshop: Workshop, tmp_path: Path, ids: Path, variant: str, form: str
) -> None:
    """Of the model as it is served: FP8 with rounded inputs, which the parts, of weights alone, are without."""
    path = written(workshop.checkpoint(variant), tmp_path / "w", FORMS[form])
    report = measure_quality(path, workshop.checkpoint(variant), ids, window=50)
    engine, reference = TransformersEngine(path, as_served=True), workshop.reference(variant)
    weights = HFReference(float_of(path))
    figures = []
    for window in np.asarray(json.loads(ids.read_text())).reshape(3, 50):
        at = np.arange(49), window[1:]
        served = log_probabilities(engine.session(capacity=50).append(window)[0])
        expected, alone = (log_probabilities(side.logits(window[None])[0]) for side in (reference, weights))
        kl = [(np.exp(expected) * (expected - other))[:-1].sum(axis=1) for other in (served, alone)]
        figures.append([-served[at], -expected[at], *kl])
    served_loss, loss, kl_served, kl_alone = np.mean(figures, axis=(0, 2))
    assert report.perplexity.value == pytest.approx(np.exp(served_loss), rel=1e-5)
    assert report.reference_perplexity.value == pytest.approx(np.exp(loss), rel=1e-5)
    assert report.kl.value == pytest.approx(kl_served, rel=1e-4)
    assert report.together is not None and report.together.value == pytest.approx(kl_alone, rel=1e-4)
    assert (report.kl.value == pytest.approx(report.together.value, rel=1e-3)) == (form == "W4A16")
    assert report.facts["activations"] == ("fp8" if form == "FP8" else "fp32")
    assert report.facts["quant"] == {"W4A16": "int4", "FP8": "fp8"}[form]
    assert [part.name for part in report.layers] == ["0", "1", "2", "3"]
    assert ("target", "compressed-tensors") in sections_of(report)[-1].table.rows


def test_a_part_by_itself(workshop: Workshop, tmp_path: Path, ids: Path) -> None:
    """Bits are those of codes, scales and shapes."""
    path, checkpoint = written(workshop.checkpoint("maverick"), tmp_path / "w", FORMS["W4A16"]), "maverick"
    report = measure_quality(path, workshop.checkpoint(checkpoint), ids, window=50)
    values = dict(HFReference(float_of(path)).model.named_parameters())
    one, reference = HFReference(workshop.checkpoint(checkpoint)), workshop.reference(checkpoint)
    one.replace(
        (name, value.detach().numpy())
        for name, value in values.items()
        if layer_of(name) == 1 and kind_of(name) in ("experts gate_up", "experts down", "shared expert")
    )
    kl = []
    for window in np.asarray(json.loads(ids.read_text())).reshape(3, 1, 50):
        p, q = (log_probabilities(side.logits(window)[0, :-1]) for side in (reference, one))
        kl += (np.exp(p) * (p - q)).sum(axis=1).tolist()
    assert report.layers[1].kl.value == pytest.approx(np.mean(kl), rel=1e-3)
    shared = next(part for part in report.kinds if part.name == "shared expert")
    assert shared.bits_per_weight == pytest.approx(4 + 16 / 32 + 128 / (64 * 32))


def test_conversations_with_images(tmp_path: Path) -> None:
    checkpoint = talking_checkpoint(tmp_path / "c")
    path = written(checkpoint, tmp_path / "w", FORMS["W8A16"])
    text = shown_and_answered(tmp_path / "m.jsonl")
    report = measure_quality(path, float_of(path), text, breakdown=False)
    assert report.kl.value < 1e-9 and report.top1_agreement.value == 1  # the same numbers, dequantised by NumPy
    assert measure_quality(path, checkpoint, text, breakdown=False).kl.value > 1e-7
