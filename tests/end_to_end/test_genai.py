"""onnxruntime-genai opens an engine directory as it is and says what transformers says."""

from __future__ import annotations

import numpy as np
import onnxruntime_genai as og
import pytest

from workshop import LAYOUTS, VARIANTS, Workshop, random_ids


def _generator(workshop: Workshop, variant: str, layout: str, length: int) -> og.Generator:
    model = og.Model(str(workshop.engine_path(variant, layout, 1200)))
    parameters = og.GeneratorParams(model)
    # min_length keeps a random model from stopping at its end-of-sequence token
    parameters.set_search_options(max_length=length, min_length=length)
    return og.Generator(model, parameters)


def _say(generator: og.Generator, count: int) -> list[int]:
    for _ in range(count):
        generator.generate_next_token()
    tokens: list[int] = generator.get_sequence(0).tolist()
    return tokens[-count:]


def _expected(workshop: Workshop, variant: str, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens of transformers with the end-of-sequence tokens forbidden, as min_length does."""
    reference, stops = workshop.reference(variant), workshop.engine(variant, "static").config.eos_token_ids
    tokens: list[int] = []
    for _ in range(count):
        logits = reference.logits(np.asarray([prompt + tokens]))[0, -1]
        logits[list(stops)] = -np.inf
        tokens.append(int(logits.argmax()))
    return tokens


@pytest.mark.parametrize("layout", ["concat", "static"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_same_greedy_tokens(workshop: Workshop, variant: str, layout: str) -> None:
    prompt = random_ids(50, seed=7).tolist()
    generator = _generator(workshop, variant, layout, 110)
    generator.append_tokens(prompt)
    assert _say(generator, 40) == _expected(workshop, variant, prompt, 40)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_it_cannot_run_has_no_config_for_it(workshop: Workshop, layout: str) -> None:
    """A second prompt would run over the end of a chunk."""
    assert (workshop.engine_path("scout", layout) / "genai_config.json").exists() == (layout != "chunked")


@pytest.mark.parametrize("first", [23, 44, 600])  # 600: more than one call takes (512)
@pytest.mark.parametrize("variant", ["scout", "maverick"])
def test_a_second_prompt_appended_in_the_middle_of_a_chunk(workshop: Workshop, variant: str, first: int) -> None:
    prompt, more = random_ids(first, seed=8).tolist(), random_ids(29, seed=9).tolist()
    generator = _generator(workshop, variant, "static", first + 80)
    generator.append_tokens(prompt)
    generator.append_tokens(more)
    assert _say(generator, 20) == _expected(workshop, variant, prompt + more, 20)


def test_a_second_prompt_after_generation(workshop: Workshop) -> None:
    """onnxruntime-genai 0.18 leaves the last generated token out of the cache: rewind by one and feed it first."""
    prompt, more = random_ids(37, seed=8).tolist(), random_ids(29, seed=9).tolist()
    generator = _generator(workshop, "scout", "static", 130)
    generator.append_tokens(prompt)
    said = _say(generator, 20)
    generator.rewind_to(len(prompt) + len(said) - 1)
    generator.append_tokens([said[-1], *more])
    assert _say(generator, 20) == _expected(workshop, "scout", prompt + said + more, 20)


@pytest.mark.parametrize("kv_dtype", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("layout", ["concat", "static"])
def test_caches_of_other_dtypes(workshop: Workshop, layout: str, kv_dtype: str) -> None:
    """It takes the caches' dtype and width from the graph: what it says is what our own runtime says."""
    prompt, more = random_ids(37, seed=7).tolist(), random_ids(29, seed=9).tolist()
    model = og.Model(str(workshop.engine_path("scout", layout, 1200, kv_dtype)))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=110, min_length=110)
    generator = og.Generator(model, parameters)
    generator.append_tokens(prompt)
    engine = workshop.engine("scout", layout, 1200, kv_dtype)
    session, expected = engine.session(), []
    logits = session.append(prompt)
    if layout == "static":  # in the middle of a chunk
        generator.append_tokens(more)
        logits = session.append(more)
    for _ in range(40):
        allowed = logits[0, -1].copy()
        allowed[list(engine.config.eos_token_ids)] = -np.inf
        expected.append(int(allowed.argmax()))
        logits = session.append(expected[-1:])
    assert _say(generator, 40) == expected
