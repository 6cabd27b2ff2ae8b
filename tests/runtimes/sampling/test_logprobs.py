"""Log probabilities against torch."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from l4export.runtimes.sampling.logprobs import token_logprobs

LOGITS = arrays(np.float32, st.integers(1, 30), elements=st.integers(-80, 80).map(lambda n: n / 4) | st.just(-math.inf))


@given(LOGITS.filter(lambda row: bool(np.isfinite(row).any())), st.data())
def test_they_are_the_log_softmax(logits: np.ndarray, data: st.DataObject) -> None:
    token, count = data.draw(st.integers(0, len(logits) - 1)), data.draw(st.integers(0, len(logits)))
    due = torch.from_numpy(logits).double().log_softmax(dim=-1).tolist()
    found = token_logprobs(logits, token, count)
    assert found.token == token and math.isclose(found.logprob, due[token], rel_tol=1e-12, abs_tol=1e-12)
    order = sorted(range(len(logits)), key=lambda other: (-logits[other], other))[:count]
    assert [other for other, _ in found.top] == order
    assert np.allclose([logprob for _, logprob in found.top], [due[other] for other in order], rtol=1e-12, atol=1e-12)
