"""`l4export build`."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l4export.cli.byte_progress import byte_progress
from l4export.cli.option_groups import GroupedCommand, option, option_group
from l4export.cli.sizes import parse_size
from l4export.cli.steps import step_progress
from l4export.errors import InputError, L4Error
from l4export.targets import CHECKPOINT_TARGETS, TARGETS

if TYPE_CHECKING:
    from l4export.compiler.checkpoint_plan import CheckpointPlan
    from l4export.compiler.options import BuildOptions
    from l4export.compiler.plan import BuildPlan
    from l4export.quantization.policy import Policy

__all__ = ["command"]


_TARGETS = {name: target.summary for name, target in TARGETS.items()} | {
    name: target.summary for name, target in CHECKPOINT_TARGETS.items()
}
"""What `--target` takes, and what each is."""


class _Interrupted(L4Error):
    """Ctrl-C, with a message about what was kept."""

    exit_code = 130


@click.command("build", cls=GroupedCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@option_group(
    "Target",
    option(
        "--target",
        type=click.Choice(list(_TARGETS)),
        default="ort-cpu",
        show_default=True,
        help="What the engine runs on. " + " ".join(f"{name}: {summary}." for name, summary in _TARGETS.items()),
    ),
    option(
        "--dtype",
        type=click.Choice(["fp32", "fp16", "bf16"]),
        help="Float type of weights and computation.  [default: fp32; with --target ort-cuda fp16]",
    ),
    option(
        "--compute-capability",
        "compute_capabilities",
        metavar="CC,...",
        callback=lambda *a: tuple(a[2].split(",")) if a[2] else (),
        help="The GPUs that a TensorRT for RTX engine is compiled for, as 8.9,12.0.",
    ),
    option(
        "--vision",
        type=click.Choice(["auto", "none"]),
        default="auto",
        show_default=True,
        help="auto: with the vision tower of a checkpoint that has one. none: the text model alone.",
    ),
    option(
        "--vision-dtype",
        type=click.Choice(["fp32", "fp16", "bf16"]),
        help="Float type of the vision tower; --quant leaves it as it is.  [default: --dtype]",
    ),
    option(
        "--layers",
        metavar="A:B",
        callback=lambda *a: _layers(a[2]),
        help="Build only the layers A to B - 1, as a working engine.",
    ),
)
@option_group(
    "Weights",
    option(
        "--adapter",
        "adapters",
        multiple=True,
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Merge the LoRA adapter in this directory into the checkpoint's weights. May be given several times; they "
        "are merged in this order.",
    ),
    option(
        "--quant",
        type=click.Choice(["none", "int8", "int4", "fp8", "auto"]),
        default="none",
        show_default=True,
        help="Store weights in fewer bits. With int4 the head and the embedding have 8 bits. auto chooses int4 or int8 "
        "for each group of weights by measured damage; it needs --bits-per-weight.",
    ),
    option(
        "--bits-per-weight",
        type=float,
        metavar="B",
        help="With --quant auto: the average size of a weight, scales included. Needs the `reference` extra.",
    ),
    option(
        "--block-size", type=int, help="Number of weights that share a scale.  [default: at most 128; fp8: a channel]"
    ),
    option(
        "--fit-scales",
        is_flag=True,
        help="Choose the scales of int4 and int8 weights so that a block's squared error is smallest. Slower.",
    ),
    option(
        "--policy",
        "policy_file",
        type=click.Path(path_type=Path),
        help="A TOML file that says which weights are quantised how.",
    ),
    option(
        "--activations",
        type=click.Choice(["fp8"]),
        help="Round what FP8 weights are multiplied by to FP8 as well, with scales measured on a text.",
    ),
)
@option_group(
    "KV cache",
    option(
        "--kv-layout",
        type=click.Choice(["concat", "static", "chunked"]),
        default="static",
        show_default=True,
        help="static: buffers of --max-context slots. chunked: the same, but a layer with chunked attention has one "
        "chunk. concat: tensors that grow.",
    ),
    option(
        "--kv-dtype",
        type=click.Choice(["fp32", "fp16", "int8", "int4"]),
        help="Type of keys and values in the cache.  [default: --dtype]",
    ),
    option(
        "--max-context", type=int, help="Longest sequence in tokens.  [default: the model's own limit, at most 8192]"
    ),
)
@option_group(
    "Calibration",
    option(
        "--calibrate",
        metavar="FILE_OR_DIR",
        help="Choose the codes of int4 and int8 weights so that a layer's outputs on this text change least (GPTQ). "
        "Takes text, token ids (.json), conversations with images (.jsonl), or `default` for a text that comes with "
        "l4export. Needs the `reference` extra. "
        "With --activations: the text that their scales are measured on.",
    ),
    option(
        "--kv-calibrate",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Text or token ids that the scales of an int8 or int4 cache are measured on.  [default: a short text]",
    ),
)
@option_group(
    "Resources",
    option("--jobs", type=int, help="Number of workers.  [default: one a core]"),
    option(
        "--memory-budget",
        metavar="SIZE",
        callback=lambda *a: None if a[2] is None else parse_size("--memory-budget", a[2]),
        help="Memory for weights on their way from checkpoint to engine, as 512MB, 2GiB or 1.5G, and for compiling: a "
        "TensorRT engine that takes more is cut into several.  [default: 512MiB; one engine]",
    ),
)
@option_group(
    "Output",
    option("-o", "--output", "engine", required=True, type=click.Path(path_type=Path), help="Engine directory."),
    option("--force", is_flag=True, help="Replace an engine that is already there."),
    option("--dry-run", is_flag=True, help="Plan only: say what would be written."),
    option(
        "--write-policy", type=click.Path(path_type=Path), help="Write the policy that is used to a file for --policy."
    ),
    option("--dump-ir", type=click.Path(path_type=Path), help="Write the graph after each pass to this directory."),
    option("--json", "as_json", is_flag=True, help="Print one JSON document."),
)
def command(
    checkpoint: Path, engine: Path, write_policy: Path | None, dry_run: bool, as_json: bool, **asked: Any
) -> None:
    """Build an engine directory from the Llama 4 CHECKPOINT directory, or a checkpoint for other programs."""
    from l4export.compiler.build import output_directory, plan_product

    policy_file: Path | None = asked["policy_file"]
    options = _options(**asked)
    directory = output_directory(engine, options)
    if write_policy is not None:
        _check_policy_path(write_policy, policy_file)
    writes = [path for path in (options.dump_ir, write_policy) if path is not None]
    directory.check([checkpoint, *options.reads, *([policy_file] if policy_file else [])], writes)
    with step_progress() as tell:
        planned = plan_product(checkpoint, options, directory.calibration, tell)
    for note in planned.inputs.checkpoint.notes():
        _notice(note)
    for codes in planned.stored_codes:
        _notice(f"{checkpoint}: {codes}")
    _tell_choice(planned.options.policy)
    if write_policy is not None:
        _write_policy(planned.options.policy, write_policy)
    if dry_run:
        _show_plan(planned, engine, as_json)
    else:
        _build(planned, engine, as_json)


def _build(planned: BuildPlan | CheckpointPlan, engine: Path, as_json: bool) -> None:
    from l4export.compiler.build import KEPT, output_directory, run_build

    directory = output_directory(engine, planned.options)
    started = time.monotonic()
    try:
        with byte_progress(quiet=as_json) as advance:
            manifest = run_build(planned, directory, advance, _notice)
    except KeyboardInterrupt:
        click.echo(err=True)  # ends the line on which the terminal shows ^C
        raise _Interrupted(f"interrupted; {KEPT if directory.begun else 'nothing was built'}") from None
    seconds = time.monotonic() - started
    size = sum(record.bytes for record in manifest.files.values())
    if as_json:
        summary = {"engine": str(engine), "files": len(manifest.files), "bytes": size, "seconds": round(seconds, 3)}
        click.echo(json.dumps({**summary, **_graph_summary(planned)}))
        return
    what = _described(planned)
    click.echo(f"{engine}: {size / 1e9:.3f} GB in {len(manifest.files)} files, {seconds:.1f} s ({what})")


def _graph_summary(planned: BuildPlan | CheckpointPlan) -> dict[str, Any]:
    """What there is to say of an engine's graph; of a checkpoint, which has none, nothing."""
    from l4export.compiler.plan import BuildPlan

    if not isinstance(planned, BuildPlan):
        return {}
    return {"max_context": planned.inputs.max_context, "passes": list(planned.passes)}


def _options(
    *,
    quant: str,
    bits_per_weight: float | None,
    block_size: int | None,
    fit_scales: bool,
    policy_file: Path | None,
    calibrate: str | None,
    **others: Any,
) -> BuildOptions:
    """The options as the compiler takes them; `others` already have the compiler's names."""
    from l4export.calibration.text import DEFAULT_TEXT
    from l4export.compiler.options import BuildOptions

    if (quant == "auto") != (bits_per_weight is not None):
        raise InputError("--quant auto and --bits-per-weight go together: give both, as in --bits-per-weight 4.5")
    text = DEFAULT_TEXT if calibrate == "default" else Path(calibrate) if calibrate else None
    policy = _policy(quant, block_size, fit_scales, policy_file, others["target"] in CHECKPOINT_TARGETS)
    return BuildOptions(policy=policy, bits_per_weight=bits_per_weight, calibrate=text, **others)


def _policy(
    quant: str, block_size: int | None, fit_scales: bool, policy_file: Path | None, of_mlps_alone: bool
) -> Policy | None:
    from l4export.quantization.policy import load_policy, standard_policy

    if quant == "auto":
        if block_size is not None or fit_scales or policy_file is not None:
            raise InputError("--quant auto chooses blocks and schemes: leave --block-size, --fit-scales, --policy out")
        return None
    if policy_file is None:
        return standard_policy(quant, block_size, fit_scales, of_mlps_alone)
    if quant != "none" or block_size is not None or fit_scales:
        raise InputError("--policy decides all of these: leave out --quant, --block-size and --fit-scales")
    return load_policy(policy_file)


def _tell_choice(policy: Policy | None) -> None:
    if policy is not None and (told := policy.origin):
        _notice(
            f"chosen: {told['bits_per_weight']:.3f} bits per weight, KL {told['measured_kl']:.4g} on "
            f"{told['text']['tokens']} tokens ({told['predicted_kl']:.4g} predicted)"
        )


def _write_policy(policy: Policy | None, path: Path) -> None:
    asked = policy and policy.without_stored()
    if asked is None:
        raise InputError("--write-policy: nothing is quantised; give --quant")
    path.write_text(asked.to_toml(), encoding="utf-8")


def _check_policy_path(path: Path, policy_file: Path | None) -> None:
    """A file that is there may be replaced only if it is a policy, and not the one that is read."""
    from l4export.quantization.policy import load_policy

    if not path.is_file():
        return
    try:
        load_policy(path)
        lost = policy_file is not None and path.samefile(policy_file)
    except (L4Error, OSError):
        lost = True
    if lost:
        raise InputError(f"--write-policy {path}: exists already, and would be lost; choose another file")


def _show_plan(planned: BuildPlan | CheckpointPlan, engine: Path, as_json: bool) -> None:
    from l4export.compiler.plan import BuildPlan

    files = planned.data_files
    summary: dict[str, Any] = {"engine": str(engine), "files": files, "bytes": sum(files.values())}
    if isinstance(planned, BuildPlan):
        summary |= {"parts": planned.parts, "nodes": len(planned.model.graph)}
    summary |= _graph_summary(planned)
    if as_json:
        click.echo(json.dumps(summary))
        return
    click.echo(f"{engine}: would hold {summary['bytes'] / 1e9:.3f} GB of weights ({_described(planned)})")
    for name, size in files.items():
        click.echo(f"  {name}  {size:,} bytes")
    if isinstance(planned, BuildPlan):
        if len(planned.parts) > 1:
            click.echo(f"  engines of the layers {', '.join(f'{start}:{stop}' for start, stop in planned.parts)}")
        passes, context = ", ".join(planned.passes), summary["max_context"]
        click.echo(f"  passes: {passes}; {summary['nodes']} nodes; context {context}")


def _layers(text: str | None) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text or "", re.ASCII)
    if text is not None and not match:
        raise InputError(f"--layers {text[:40]!r} is not a range; write A:B for the layers A to B - 1, as 0:4")
    return (int(match[1]), int(match[2])) if match else None


def _notice(line: str) -> None:
    print(f"l4export: {line}", file=sys.stderr)  # not click.echo: a progress bar that is on the screen moves aside


def _described(planned: BuildPlan | CheckpointPlan) -> str:
    from l4export.compiler.plan import BuildPlan

    options = planned.options
    kinds = sorted({rule.kind for rule in options.policy.rules}) if options.policy else []
    calibrated = [f"{options.activations} activations"] if options.activations else []
    calibrated += ["calibrated"] if options.calibrate else []
    if not isinstance(planned, BuildPlan):
        return ", ".join([options.target, planned.dtype, *kinds, *calibrated])
    cache = f"KV {options.kv_layout} {options.cache_dtype}"
    return ", ".join([options.target, options.float_dtype, *kinds, *calibrated, cache])
