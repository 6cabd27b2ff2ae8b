"""How a checkpoint's authors would have its tokens sampled: generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from l4export.errors import InputError
from l4export.runtimes.sampling.settings import Sampling
from l4export.storage.regular_files import read_small
from l4export.storage.safetensors import parse_json_object

__all__ = ["GENERATION_CONFIG", "recommended_sampling"]

GENERATION_CONFIG = "generation_config.json"
_MOST_BYTES = 16 << 20

_DEFAULTS = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
"""What transformers' `generate` takes where a file with `do_sample` says nothing."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "assistant_confidence_threshold": (),
    "bad_words_ids": (),
    "begin_suppress_tokens": (),
    "constraints": (),
    "diversity_penalty": (0.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0, 1.0),
    "eta_cutoff": (0.0, 1.0),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "penalty_alpha": (0.0,),
    "sequence_bias": (),
    "suppress_tokens": (),
    "top_h": (),
    "typical_p": (1.0,),
    "watermarking_config": (),
}
"""Settings that change which token is chosen and that this runtime does not have, with the values that change nothing.
None and what is empty change nothing either."""


def recommended_sampling(directory: Path) -> Sampling:
    """The sampling that generation_config.json describes, as transformers' `generate` obeys it; greedy without a file.

    Only `do_sample` makes it random; a repetition penalty holds in either case.

    Raises:
        InputError: a file that is broken, a setting of another type or out of its range, or one that this runtime does
            not have and that would change what is said.
        StorageError: the file cannot be read.
    """
    path = directory / GENERATION_CONFIG
    if not path.exists():
        return Sampling()
    raw = parse_json_object(read_small(path, _MOST_BYTES, "copy it from the checkpoint again"), str(path))
    found = {name: value for name, value in raw.items() if value is not None}
    for name, neutral in _NEUTRAL.items():
        if name in found and found[name] not in (*neutral, [], {}):
            raise InputError(
                f"{path}: has {name}, which this runtime does not do; give the sampling yourself, or take it out"
            )
    do_sample = found.get("do_sample", False)
    if not isinstance(do_sample, bool):
        raise InputError(f"{path}: do_sample is neither true nor false; correct it")
    settings = {"repetition_penalty": found.get("repetition_penalty", 1.0)}
    if do_sample:
        settings |= {name: found.get(name, default) for name, default in _DEFAULTS.items()}
    try:
        return Sampling(**settings)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
