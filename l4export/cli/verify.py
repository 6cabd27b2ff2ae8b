"""`l4export verify`."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


@click.command("verify")
@click.argument("engine", type=click.Path(path_type=Path))
def command(engine: Path) -> None:
    """Check the size and SHA-256 digest of every file of ENGINE against its manifest.

    ENGINE may be a checkpoint that `build` wrote. The exit code is 1 if a file differs.
    """
    from l4export.engine.checkpoint_manifest import is_written_checkpoint, verify_checkpoint
    from l4export.engine.manifest import verify_files

    files = (verify_checkpoint(engine) if is_written_checkpoint(engine) else verify_files(engine)).files
    size = sum(record.bytes for record in files.values())
    click.echo(f"{engine}: {len(files)} files, {size / 1e9:.3f} GB, all as built")
