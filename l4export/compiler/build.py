"""From options to a directory: an engine, or a checkpoint for other programs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from l4export.compiler.checkpoint_build import build_checkpoint
from l4export.compiler.checkpoint_plan import CheckpointPlan, plan_checkpoint
from l4export.compiler.directory import OutputDirectory
from l4export.compiler.engine_build import build_engine
from l4export.compiler.options import BuildOptions
from l4export.compiler.plan import BuildPlan, plan_build
from l4export.compiler.products import CHECKPOINT, ENGINE
from l4export.compiler.weights_writer import OnProgress, Say
from l4export.engine.checkpoint_manifest import CheckpointManifest
from l4export.engine.manifest import Manifest
from l4export.errors import StorageError
from l4export.targets import CHECKPOINT_TARGETS

__all__ = ["KEPT", "OnProgress", "Say", "build", "output_directory", "plan_product", "run_build"]

KEPT = "what was written is kept: run the same command again to continue"


def build(
    checkpoint_path: str | os.PathLike[str],
    engine_path: str | os.PathLike[str],
    options: BuildOptions | None = None,
    on_progress: OnProgress | None = None,
    on_notice: Say | None = None,
) -> Manifest | CheckpointManifest:
    """Build an engine directory from a checkpoint, or a checkpoint for other programs; returns its manifest.

    The directory appears under its name only when it is complete. A build that was killed or that failed continues when
    it is run again.

    Args:
        checkpoint_path: A checkpoint directory.
        engine_path: The directory to be made.
        options: What is asked for; None: the defaults.
        on_progress: Receives (written, total) bytes of weights.
        on_notice: Receives notices for the user, one line at a time.

    Raises:
        InputError: a checkpoint, an option or a weight that cannot be built; an output that exists (without `force`);
            a checkpoint that changed during the build.
        EnvironmentLacks: onnxruntime is missing, and the KV cache is quantised or the engine is for CUDA; nothing to
            compile with, or too little memory for it.
        StorageError: reading or writing failed.
    """
    options = options or BuildOptions()
    directory = output_directory(Path(engine_path), options)
    directory.check([Path(checkpoint_path), *options.reads], [options.dump_ir] if options.dump_ir else [])
    planned = plan_product(Path(checkpoint_path), options, directory.calibration, on_notice)
    return run_build(planned, directory, on_progress, on_notice)


def output_directory(path: Path, options: BuildOptions) -> OutputDirectory:
    """The place of what `options` ask for."""
    return OutputDirectory(path, options.force, CHECKPOINT if options.target in CHECKPOINT_TARGETS else ENGINE)


def plan_product(
    checkpoint_path: Path,
    options: BuildOptions,
    calibration_directory: Path = Path("calibration"),
    on_step: Callable[[str], None] | None = None,
) -> BuildPlan | CheckpointPlan:
    """Plan what `options` ask for; arguments and errors are those of `plan_build`."""
    plan = plan_checkpoint if options.target in CHECKPOINT_TARGETS else plan_build
    return plan(checkpoint_path, options, calibration_directory, on_step)


def run_build(
    planned: BuildPlan | CheckpointPlan,
    directory: OutputDirectory,
    on_progress: OnProgress | None = None,
    on_notice: Say | None = None,
) -> Manifest | CheckpointManifest:
    """Carry out a plan; returns the product's manifest. Raises as `build`."""
    say = on_notice or (lambda _: None)
    try:
        if isinstance(planned, CheckpointPlan):
            return build_checkpoint(planned, directory, on_progress, say)
        return build_engine(planned, directory, on_progress, say)
    except OSError as error:
        outcome = KEPT if directory.begun else "nothing was built"
        raise StorageError(f"{error.filename or directory.path}: {error.strerror or error}; {outcome}") from error
