"""`l4export sample`."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


@click.command("sample")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--variant", type=click.Choice(["scout", "maverick", "guard", "mobile"]), required=True)
@click.option("--size", type=click.Choice(["tiny", "bench"]), default="tiny", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def command(out: Path, variant: str, size: str, seed: int) -> None:
    """Write a checkpoint with seeded random weights to the new directory OUT.

    tiny: some 200 thousand parameters, chunks of 16 tokens, so that every feature shows within a hundred tokens.
    bench: hidden 2048, 4 layers, 16 experts, bf16 (scout: 1.88 billion parameters, 3.77 GB).
    """
    from l4export.checkpoint import open_checkpoint
    from l4export.sample import write_sample

    write_sample(out, variant, size, seed)
    total = open_checkpoint(out).config.parameter_count().total
    click.echo(f"{out}: {variant} {size}, {total:,} parameters, seed {seed}")
