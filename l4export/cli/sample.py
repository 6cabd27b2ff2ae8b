"""`l4export sample`."""

from __future__ import annotations

import math
from pathlib import Path

import click

__all__ = ["command"]


@click.command("sample")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--variant",
    type=click.Choice(["scout", "maverick", "guard", "mobile"]),
    required=True,
    help="Member of the model family.",
)
@click.option(
    "--size", type=click.Choice(["tiny", "bench", "full"]), default="tiny", show_default=True, help="Size of the model."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["float", "fp8", "w4a16"]),
    default="float",
    show_default=True,
    help="How weights are stored.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the weights.")
@click.option("--vision", is_flag=True, help="With a vision tower, an image processor and a tokenizer (not mobile).")
def command(out: Path, variant: str, size: str, form: str, seed: int, vision: bool) -> None:
    """Write a checkpoint with seeded random weights to the new directory OUT.

    tiny: about 200 thousand parameters and chunks of 16 tokens, so that a hundred tokens use every feature.

    bench: hidden 2048, 4 layers, 16 experts, bf16 (scout: 1.88 billion parameters, 3.77 GB).

    full: the released shapes of scout or maverick WITHOUT weights. Every tensor is a hole in a sparse file, which reads
    as zeros and takes no space (scout: 216 GB apparent, under a megabyte on disk). The seed has no effect.

    fp8, w4a16: quantised in the format of compressed-tensors, fp8 as Llama-4-Maverick-17B-128E-Instruct-FP8 is (routed
    experts), w4a16 as RedHatAI's Scout (every MLP). The rest is bf16. At size full scales are written, codes are holes.
    """
    from l4export.checkpoint import open_checkpoint
    from l4export.checkpoint.sample import write_sample
    from l4export.model.tensors import parameter_count, vision_tensors

    write_sample(out, variant, size, seed, vision=vision, form=form)
    checkpoint = open_checkpoint(out)
    count = parameter_count(checkpoint.config).total
    if vision:
        count += sum(map(math.prod, vision_tensors(checkpoint.vision_config(), checkpoint.config.hidden_size).values()))
    what = f"{out}: {variant} {size}{'' if form == 'float' else f' in {form}'}, {count:,} parameters"
    if size != "full":
        click.echo(f"{what}, seed {seed}")
        return
    apparent = sum(file.size for file in checkpoint.files)
    on_disk = sum(file.path.stat().st_blocks * 512 for file in checkpoint.files)
    holes = f"{apparent / 1e9:.1f} GB apparent, {on_disk / 1e6:.1f} MB on disk"
    nothing = "shapes without weights (all zeros)" if form == "float" else "shapes and scales without codes"
    click.echo(f"{what}: {nothing}, {holes}")
