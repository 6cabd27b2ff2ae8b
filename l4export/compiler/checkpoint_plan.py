"""What a build of a checkpoint for other programs will do. All of it is known except the bytes of its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from l4export.calibration.weight_codes import CalibrationPlan
from l4export.compiler.auto_policy import WeightChoice, with_chosen_policy
from l4export.compiler.inputs import BuildInputs, open_inputs
from l4export.compiler.manifest import codes_options
from l4export.compiler.options import BuildOptions, check_options
from l4export.compiler.provenance import Sources, generator
from l4export.compiler.source_weights import SourceWeights
from l4export.engine.checkpoint_manifest import CheckpointManifest
from l4export.engine.companions import TEMPLATE_FOLDER
from l4export.errors import InputError
from l4export.quantization.schemes import ScaleDtype
from l4export.storage.file_records import FileRecord
from l4export.storage.opened_file import OpenedFile
from l4export.targets import CHECKPOINT_TARGETS, CheckpointFiles, CheckpointRequest
from l4export.targets.kept_codes import StoredCodes, keep_codes
from l4export.weights.emission import check_budget
from l4export.weights.placement import DataFile

__all__ = ["CheckpointPlan", "plan_checkpoint"]

_BITS = {"float32": 32, "float16": 16, "bfloat16": 16}


@dataclass(frozen=True)
class CheckpointPlan:
    """A build of a checkpoint that has not read a weight.

    Attributes:
        inputs: What is read.
        options: What was asked for, with the policy that `--quant auto` chose, and rules for codes that are kept.
        dtype: Of scales, and of floats that are computed.
        written: The files that the target writes.
        sources: The files that it reads, opened.
        calibration: What finds the codes of weights; None where they are rounded to nearest.
        stored_codes: What becomes of weights that the source stores quantised.
    """

    inputs: BuildInputs
    options: BuildOptions
    dtype: ScaleDtype
    written: CheckpointFiles
    sources: Sources
    calibration: CalibrationPlan | None
    stored_codes: tuple[StoredCodes, ...]
    weight_copies = 1

    @property
    def files(self) -> tuple[DataFile, ...]:
        """The shards."""
        return self.written.shards

    @property
    def headers(self) -> Mapping[str, bytes]:
        """What each shard begins with."""
        return self.written.headers

    @property
    def weight_options(self) -> Mapping[str, object]:
        """The options that decide the bytes of weights, but for adapters and texts."""
        policy = self.options.policy
        return {"target": self.options.target, "dtype": self.dtype, "policy": policy and policy.to_dict()}

    @property
    def data_files(self) -> dict[str, int]:
        """Name and size in bytes of each shard."""
        return {file.name: file.size for file in self.files}

    @property
    def companions(self) -> dict[str, OpenedFile]:
        """The small files that are copied, by their paths in the checkpoint."""
        named = f"{TEMPLATE_FOLDER}."
        return {
            f"{TEMPLATE_FOLDER}/{name.removeprefix(named)}" if name.startswith(named) else name: file
            for name, file in self.inputs.companions.items()
        }

    def manifest(self, files: dict[str, FileRecord], source: dict[str, FileRecord]) -> CheckpointManifest:
        """The manifest of a checkpoint with these files, from these sources; without them, a draft to compare with."""
        return CheckpointManifest(
            generator=generator(),
            target=self.options.target,
            model=self.inputs.config,
            options={"weights": {"dtype": self.dtype, **codes_options(self.inputs, self.options, self.stored_codes)}},
            source=source,
            files=files,
            vision=self.inputs.vision,
        )


def plan_checkpoint(
    checkpoint_path: Path,
    options: BuildOptions,
    calibration_directory: Path = Path("calibration"),
    on_step: Callable[[str], None] | None = None,
) -> CheckpointPlan:
    """Open the inputs, choose a policy if one is to be chosen, and decide what goes where.

    Reads no weights, unless `options.bits_per_weight` asks for a policy by measured damage. Arguments and errors are
    those of `plan_build`.
    """
    check_options(options)
    inputs, target = open_inputs(checkpoint_path, options), CHECKPOINT_TARGETS[options.target]
    dtype = inputs.checkpoint.named_dtype
    if options.bits_per_weight is not None:
        choice = WeightChoice(_BITS[dtype], dtype, positive=True, of_mlps_alone=True)
        options = with_chosen_policy(inputs, options, choice, on_step)
    policy, stored_codes = keep_codes(inputs.checkpoint, target, options.policy, scale_dtype=dtype)
    if policy is None:
        raise InputError(
            f"--target {target.name}: nothing is quantised; add --quant {' or '.join(target.weight_kinds)}"
        )
    options = dataclasses.replace(options, policy=policy)
    text, sources = inputs.texts.weights, SourceWeights(inputs)
    tower = SourceWeights(inputs)
    calibration = CalibrationPlan(text, calibration_directory) if text else None
    written = target.lay_out(
        CheckpointRequest(
            config=inputs.config,
            vision=inputs.vision,
            raw_config=inputs.checkpoint.raw_config,
            prefix="language_model." if inputs.vision else inputs.checkpoint.prefix,
            weight=sources.recipe,
            tower_weight=tower.tower_recipe,
            dtype=dtype,
            policy=policy,
            calibration=calibration,
        )
    )
    sources.check_all_known()
    if inputs.vision is not None:
        tower.check_tower_known()
    if calibration and not calibration.schemes:
        raise InputError("--calibrate: no weight of a layer is quantised to integers; add --quant int4 or int8")
    check_budget(written.shards, options.workers, options.weights_budget)
    names = dict.fromkeys([*sources.files(), *tower.files()])
    opened = Sources(inputs.source_files(names), inputs.companions)
    return CheckpointPlan(inputs, options, dtype, written, opened, calibration, stored_codes)
