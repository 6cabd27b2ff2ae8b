"""`build --target compressed-tensors`, from command to logits: transformers computes what the build meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from adapters import pair, write_adapter
from written_checkpoints import bfloat16_sample

from l4export.checkpoint.sample import write_sample
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.engine.checkpoint_manifest import CheckpointManifest
from l4export.parity.whole_model import ParityReport, check_parity
from l4export.quality.measure import measure_quality
from l4export.quantization.policy import Policy, Rule
from l4export.reference.transformers_engine import TransformersEngine
from l4export.reference.transformers_model import HFReference
from quantised_checkpoints import Linears, quantised
from workshop import Workshop, random_ids

MLPS = ("model.layers.*.feed_forward.*_proj.weight", "model.layers.*.experts.*")


def policy(kind: str) -> Policy:
    return Policy((Rule(MLPS, kind, None if kind == "fp8" else 32),), 1)


def written(checkpoint: Path, out: Path, kind: str = "int4", **options: object) -> Path:
    """What the build makes of it."""
    made = build(checkpoint, out, BuildOptions(target="compressed-tensors", policy=policy(kind), **options))  # type: ignore[arg-type]
    assert isinstance(made, CheckpointManifest)
    return out


def holds(path: Path, checkpoint: Path, **others: object) -> ParityReport:
    """The report, once transformers has computed what l4export reads in the directory, past chunk boundaries."""
    report = check_parity(path, checkpoint, 50, 30, dequantized=True, **others)  # type: ignore[arg-type]
    assert report.passed, report.failures
    assert report.prefill.max_relative_difference < 1e-5
    return report


@pytest.mark.parametrize("kind", ["int4", "int8", "fp8"])
@pytest.mark.parametrize("variant", ["scout", "maverick", "guard", "scout-top2"])
def test_logits_are_those_of_the_codes(workshop: Workshop, tmp_path: Path, variant: str, kind: str) -> None:
    checkpoint = workshop.checkpoint(variant)
    report = holds(written(checkpoint, tmp_path / "w", kind), checkpoint)
    assert report.chunk_boundaries == (0 if variant == "guard" else 4) and report.greedy_prefix == 1


def test_several_schemes(workshop: Workshop, tmp_path: Path) -> None:
    """And some layers' experts that stay floats. Served, activations are rounded where weights are FP8 alone."""
    rules = (
        Rule(("model.layers.[02].feed_forward.experts.*",), "int4", 32),
        Rule(("model.layers.*.shared_expert.*",), "fp8"),
        Rule(("model.layers.[13].self_attn.o_proj.weight",), "int8", 64),
    )
    checkpoint, path = workshop.checkpoint("scout"), tmp_path / "w"
    build(checkpoint, path, BuildOptions(target="compressed-tensors", policy=Policy(rules, 1)))
    holds(path, checkpoint)
    served = TransformersEngine(path, as_served=True)
    assert served.manifest.precision["quant"] == "fp8, int4, int8"
    assert served.provider.endswith("activations rounded to FP8")


def test_with_an_adapter(workshop: Workshop, tmp_path: Path) -> None:
    """Merged before the codes were made: without it the same codes are another model's."""
    checkpoint, name = workshop.checkpoint("scout"), "model.layers.1.feed_forward.shared_expert.down_proj"
    adapter = write_adapter(tmp_path / "a", pair(name, 64, 32))
    path = written(checkpoint, tmp_path / "w", adapters=(adapter,))
    holds(path, checkpoint, adapters=[adapter])
    ids = tmp_path / "ids.json"
    ids.write_text(str(random_ids(150, seed=1).tolist()))
    kinds = measure_quality(path, checkpoint, ids, window=50, adapters=[adapter]).kinds
    assert {part.name for part in kinds} == {"experts gate_up", "experts down", "shared expert"}


def test_weights_that_are_computed_and_stay_floats(tmp_path: Path) -> None:
    """An adapter's attention, and a source's that was quantised: in bfloat16, as the rest of the checkpoint is."""
    checkpoint = bfloat16_sample(tmp_path / "c", "scout")
    adapter = write_adapter(tmp_path / "a", pair("model.layers.2.self_attn.v_proj", 32, 64))
    holds(written(checkpoint, tmp_path / "w", adapters=(adapter,)), checkpoint, adapters=[adapter])
    packed = Linears(packed=True, bits=4, strategy="group", group=32)
    source, _ = quantised(checkpoint, tmp_path / "q", packed, lambda name: "_proj" in name)
    holds(written(source, tmp_path / "v", "fp8"), source)


def test_codes_that_were_kept_are_the_sources(tmp_path: Path) -> None:
    """Against the source itself: q, k and v, which may not keep theirs, are then floats of 16 bits."""
    checkpoint = bfloat16_sample(tmp_path / "c", "scout")
    packed = Linears(packed=True, bits=4, strategy="group", group=32)
    source, _ = quantised(checkpoint, tmp_path / "q", packed, lambda name: "_proj" in name)
    build(source, tmp_path / "w", BuildOptions(target="compressed-tensors"))
    holds(tmp_path / "w", source)
    report = check_parity(tmp_path / "w", source, 50, 30)
    assert report.passed and report.thresholds["max_relative_difference"] == 3e-2


def test_calibrated(workshop: Workshop, tmp_path: Path) -> None:
    """Codes by GPTQ, and routers that were fitted to them, which the reference then has too."""
    checkpoint, text = workshop.checkpoint("scout"), tmp_path / "ids"
    text.write_text(" ".join(map(str, random_ids(600, seed=4))))
    path = written(checkpoint, tmp_path / "w", calibrate=text)
    holds(path, checkpoint)
    plain = written(checkpoint, tmp_path / "p")
    measured = [measure_quality(each, checkpoint, text, window=100, breakdown=False).kl.value for each in (path, plain)]
    assert measured[0] < measured[1]


def test_with_images(tmp_path: Path) -> None:
    write_sample(tmp_path / "c", "scout", "tiny", seed=3, vision=True)
    report = holds(written(tmp_path / "c", tmp_path / "w", "fp8"), tmp_path / "c", images="seeded")
    assert report.images is not None and report.images.feature_difference < 1e-6


@pytest.mark.parametrize(("vision", "kind"), [(False, "int4"), (True, "int8")])
def test_transformers_loads_it_by_itself(tmp_path: Path, vision: bool, kind: str) -> None:
    """As a user does. In float32 its logits are PyTorch's on what l4export reads there.

    bfloat16 is 2^-8 of a value, but for the positions, less than a quarter, where it chooses another expert.
    """
    write_sample(tmp_path / "c", "maverick", "tiny", seed=3, vision=vision)
    path = written(tmp_path / "c", tmp_path / "w", kind)
    ids = random_ids(40, vocab=200)
    expected = HFReference(path).logits(ids[None])
    architecture = transformers.Llama4ForConditionalGeneration if vision else transformers.Llama4ForCausalLM
    for dtype, share, most in ((torch.float32, 1, 1e-5), (torch.bfloat16, 0.75, 3e-2)):
        model = architecture.from_pretrained(path, dtype=dtype)
        with torch.inference_mode():
            logits = model(input_ids=torch.from_numpy(ids[None])).logits.float().numpy()
        departures = np.abs(logits - expected).max(axis=2)[0]
        assert np.quantile(departures, share) <= most * np.abs(expected).max()
