"""The layer-streamed reference is transformers' whole model, to float accuracy, whatever the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from l4export.checkpoint import SourceTensor, open_checkpoint
from l4export.errors import InputError
from l4export.reference.streamed_model import StreamedReference
from l4export.reference.transformers_model import HFReference
from workshop import VARIANTS, Workshop, assert_close, copy_checkpoint, edit_config, random_ids

TIGHT = 2e-6  # of the largest value: both sum in float32, experts in another order
variants = pytest.mark.parametrize("variant", [pytest.param(v, marks=pytest.mark.xdist_group(v)) for v in VARIANTS])


def whole_model(reference: HFReference, ids: np.ndarray):  # type: ignore[no-untyped-def]
    """transformers' own forward with everything it can record, and a cache that keeps whole chunks."""
    from transformers import DynamicCache

    with torch.inference_mode():
        return reference.model(
            input_ids=torch.from_numpy(ids),
            past_key_values=DynamicCache(),
            output_hidden_states=True,
            output_router_logits=True,
        )


@variants
def test_every_tap_is_that_of_the_whole_model(workshop: Workshop, variant: str) -> None:
    """80 tokens in chunks of 16, two rows: hidden states behind every layer, caches, routers, logits."""
    ids = random_ids((2, 80))
    expected = whole_model(workshop.reference(variant), ids)
    streamed = StreamedReference(open_checkpoint(workshop.checkpoint(variant)))
    taps = list(streamed.run(ids))
    routers = list(expected.router_logits or ())
    for layer, tap in enumerate(taps):
        if layer + 1 < len(taps):  # transformers puts the last one through the final norm
            assert_close(tap.hidden, expected.hidden_states[layer + 1].numpy(), TIGHT)
        assert_close(tap.keys, expected.past_key_values.layers[layer].keys.numpy(), TIGHT)
        assert_close(tap.values, expected.past_key_values.layers[layer].values.numpy(), TIGHT)
        assert (tap.router_logits is not None) == streamed.config.is_moe(layer)
        if tap.router_logits is not None:
            assert_close(tap.router_logits, routers.pop(0).numpy().reshape(tap.router_logits.shape), TIGHT)
    assert not routers
    assert_close(streamed.logits(taps[-1].hidden), expected.logits.numpy(), TIGHT)


@variants
def test_one_pass_gives_what_decoding_token_by_token_gives(workshop: Workshop, variant: str) -> None:
    """Attention is causal: position n of a whole text is what transformers' cache gives when n is fed last."""
    ids = random_ids((1, 60), seed=4)
    reference, streamed = workshop.reference(variant), StreamedReference(open_checkpoint(workshop.checkpoint(variant)))
    logits = streamed.logits(list(streamed.run(ids))[-1].hidden)
    with torch.inference_mode():
        output = reference.model(input_ids=torch.from_numpy(ids[:, :30]), use_cache=True)
        for at in range(30, 60):
            step = torch.from_numpy(ids[:, at : at + 1])
            output = reference.model(input_ids=step, past_key_values=output.past_key_values, use_cache=True)
            assert_close(logits[:, at], output.logits[:, -1].numpy(), 5e-6)  # sums of other lengths


def test_a_slice_of_layers(workshop: Workshop) -> None:
    ids = random_ids((1, 40))
    streamed = StreamedReference(open_checkpoint(workshop.checkpoint("maverick")), (1, 3))
    logits = streamed.logits(list(streamed.run(ids))[-1].hidden)
    assert_close(logits, HFReference(workshop.checkpoint("maverick"), (1, 3)).logits(ids), TIGHT)


def test_a_chunk_size_of_null(workshop: Workshop, tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    edit_config(checkpoint, attention_chunk_size=None)
    streamed, ids = StreamedReference(open_checkpoint(checkpoint)), random_ids((1, 40))
    assert_close(streamed.logits(list(streamed.run(ids))[-1].hidden), HFReference(checkpoint).logits(ids), TIGHT)


def test_experts_that_nothing_chose_are_not_read(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int]] = []
    original = SourceTensor.read

    def spy(self: SourceTensor, index=()):  # type: ignore[no-untyped-def]
        if ".experts." in self.name:
            read.append((self.name, index[0].start))
            assert index[0].stop == index[0].start + 1
        return original(self, index)

    monkeypatch.setattr(SourceTensor, "read", spy)
    streamed = StreamedReference(open_checkpoint(workshop.checkpoint("scout")))
    (taps, *_) = streamed.run(random_ids((1, 3)))
    assert taps.router_logits is not None
    chosen = set(taps.router_logits.argmax(axis=-1).ravel().tolist())
    assert 0 < len(chosen) < streamed.config.num_local_experts
    assert {expert for name, expert in read if ".layers.0." in name} == chosen


def test_other_values_in_the_place_of_weights(workshop: Workshop, tmp_path: Path) -> None:
    changed = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    weights = load_file(changed / "model.safetensors")
    names = ("model.layers.1.feed_forward.experts.down_proj", "lm_head.weight", "model.embed_tokens.weight")
    for name in names:
        weights[name] = np.ascontiguousarray(weights[name][..., ::-1])
    save_file(weights, changed / "model.safetensors")

    def replaced(name: str, rows: slice) -> np.ndarray | None:
        return weights[name][rows] if name in names else None

    ids = random_ids((1, 40))
    streamed = StreamedReference(open_checkpoint(workshop.checkpoint("scout")), replaced=replaced)
    assert_close(streamed.logits(list(streamed.run(ids))[-1].hidden), HFReference(changed).logits(ids), TIGHT)


def test_a_tensor_that_is_missing_is_named(workshop: Workshop, tmp_path: Path) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.layers.2.self_attn.o_proj.weight"]
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.layers\.2\.self_attn\.o_proj\.weight.*missing"):
        list(StreamedReference(open_checkpoint(checkpoint)).run(random_ids((1, 4))))
