"""Options that say how tokens are chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from l4export.runtimes.engine import Engine
    from l4export.runtimes.sampling.settings import Sampling

__all__ = ["SETTINGS", "chosen_sampling", "sampling_options"]

_OPTIONS = (
    click.option("--temperature", type=float, help="Randomness; 0 always takes the likeliest token.  [default: 0.0]"),
    click.option("--top-k", type=int, help="Sample only from this many of the likeliest tokens.  [default: 0, all]"),
    click.option(
        "--top-p",
        type=float,
        help="Sample only from the likeliest tokens whose probabilities add up to this.  [default: 1.0]",
    ),
    click.option(
        "--min-p",
        type=float,
        help="Sample only from tokens that are at least so many times as likely as the likeliest.  [default: 0.0]",
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        help="Divide the logits of tokens that have occurred by this.  [default: 1.0]",
    ),
    click.option("--seed", type=int, help="Seed of the sampling, which makes it repeatable."),
    click.option(
        "--recommended-sampling",
        is_flag=True,
        help="Sample as the checkpoint's generation_config.json says; the options above prevail.",
    ),
)
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with the options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen_sampling(engine: Engine, options: dict[str, Any]) -> Sampling:
    """What the options say, upon what the engine recommends if that is asked for.

    Raises:
        InputError: a setting out of its range, or recommendations that this runtime cannot follow.
    """
    from l4export.runtimes.sampling.settings import Sampling

    given = {name: options[name] for name in SETTINGS if options[name] is not None}
    return replace(engine.recommended_sampling if options["recommended_sampling"] else Sampling(), **given)
