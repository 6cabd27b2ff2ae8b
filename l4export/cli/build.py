"""`l4export build`."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from l4export.cli.byte_progress import byte_progress
from l4export.cli.sizes import parse_size
from l4export.cli.steps import step_progress
from l4export.errors import InputError, L4Error

if TYPE_CHECKING:
    from l4export.compiler.build import BuildOptions, BuildPlan
    from l4export.quantization.policy import Policy

__all__ = ["command"]


class _Interrupted(L4Error):
    """Ctrl-C, with what a person may want to know then."""

    exit_code = 130


@click.command("build")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", "engine", required=True, type=click.Path(path_type=Path), help="Engine directory.")
@click.option(
    "--target",
    type=click.Choice(["ort-cpu", "ort-cuda", "onnx", "tensorrt-rtx", "tensorrt"]),
    default="ort-cpu",
    show_default=True,
    help="What the engine is for.",
)
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="Float type.  [default: fp32; with --target ort-cuda fp16]",
)
@click.option(
    "--quant",
    type=click.Choice(["none", "int8", "int4", "fp8", "auto"]),
    default="none",
    show_default=True,
    help="Store weights in fewer bits; with int4 the head and the embedding have 8; auto: what --bits-per-weight buys.",
)
@click.option(
    "--bits-per-weight",
    type=float,
    help="With --quant auto: int4 or int8 and a block size for each group of weights, so that the measured damage is "
    "least. Needs the `reference` extra.",
)
@click.option("--block-size", type=int, help="Weights that share a scale.  [default: at most 128; fp8: a channel]")
@click.option(
    "--fit-scales",
    is_flag=True,
    help="Of int4 and int8 weights, the scales that make a block's squared error least; slower to build.",
)
@click.option("--policy", "policy_file", type=click.Path(path_type=Path), help="What is quantised how, as a TOML file.")
@click.option("--write-policy", type=click.Path(path_type=Path), help="Write the policy into a file for --policy.")
@click.option(
    "--calibrate",
    metavar="FILE_OR_DIR",
    help="Round int4 and int8 weights so as to keep what they make of this text, or of token ids (.json); `default` is "
    "a text that l4export brings. Needs the `reference` extra. With --activations: measure them on it.",
)
@click.option(
    "--activations",
    type=click.Choice(["fp8"]),
    help="Round what FP8 weights are multiplied by to FP8 as well, with scales measured on a text.",
)
@click.option(
    "--kv-layout",
    type=click.Choice(["concat", "static", "chunked"]),
    default="static",
    show_default=True,
    help="KV cache: static: buffers of --max-context slots; chunked: the same, but one chunk for chunked layers; "
    "concat: tensors that grow.",
)
@click.option(
    "--kv-dtype",
    type=click.Choice(["fp32", "fp16", "int8", "int4"]),
    help="Type of keys and values in the cache.  [default: --dtype]",
)
@click.option(
    "--kv-calibrate",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Text, or token ids, to measure scales on for an int8 or int4 cache.  [default: a short text]",
)
@click.option("--max-context", type=int, help="Longest sequence in tokens.  [default: the model's, at most 8192]")
@click.option(
    "--compute-capability",
    metavar="CC,...",
    callback=lambda *a: tuple(a[2].split(",")) if a[2] else (),
    help="GPUs that a TensorRT for RTX engine is for, as 8.9,12.0.",
)
@click.option("--layers", metavar="A:B", callback=lambda *a: _layers(a[2]), help="Only the layers A to B - 1.")
@click.option("--jobs", type=int, help="Workers, each with a block of weights in hand.  [default: one a core]")
@click.option(
    "--memory-budget",
    metavar="SIZE",
    callback=lambda *a: None if a[2] is None else parse_size("--memory-budget", a[2]),
    help="Memory for weights on their way, as 512MB, 2GiB or 1.5G, and for compiling: an engine that takes more is cut "
    "into several.  [default: 512MiB; one engine]",
)
@click.option("--force", is_flag=True, help="Replace an engine that is already there.")
@click.option("--dump-ir", type=click.Path(path_type=Path), help="Write the graph after each pass into this directory.")
@click.option("--dry-run", is_flag=True, help="Plan only: say what would be written.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    checkpoint: Path,
    engine: Path,
    target: str,
    dtype: str | None,
    quant: str,
    bits_per_weight: float | None,
    block_size: int | None,
    fit_scales: bool,
    policy_file: Path | None,
    write_policy: Path | None,
    calibrate: str | None,
    activations: str | None,
    kv_layout: str,
    kv_dtype: str | None,
    kv_calibrate: Path | None,
    max_context: int | None,
    compute_capability: tuple[str, ...],
    layers: tuple[int, int] | None,
    jobs: int | None,
    memory_budget: int | None,
    force: bool,
    dump_ir: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build an engine directory from the Llama 4 CHECKPOINT directory."""
    from l4export.compiler.build import KEPT, BuildOptions, build, plan_build
    from l4export.compiler.directory import EngineDirectory

    _check_auto(quant, bits_per_weight, block_size is not None or fit_scales or policy_file is not None)
    policy = None if quant == "auto" else _policy(quant, block_size, fit_scales, policy_file)
    dtype = dtype or ("fp16" if target == "ort-cuda" else "fp32")
    options = BuildOptions(
        *(target, dtype, kv_layout, max_context, jobs, force, dump_ir, memory_budget, layers, policy),
        calibrate=_calibration_text(calibrate),
        kv_dtype=kv_dtype,
        kv_calibrate=kv_calibrate,
        compute_capabilities=compute_capability,
        activations=activations,
    )
    EngineDirectory(engine, replace=force).check()
    if bits_per_weight is not None:
        options = _chosen(checkpoint, options, bits_per_weight)
    if write_policy is not None:
        _write_policy(options.policy, write_policy)
    if dry_run:
        _show_plan(plan_build(checkpoint, options), engine, as_json)
        return
    started = time.monotonic()
    try:
        with byte_progress(quiet=as_json) as advance:
            manifest = build(checkpoint, engine, options, advance, _notice)
    except KeyboardInterrupt:
        click.echo(err=True)  # ends the line on which the terminal shows ^C
        kept = EngineDirectory(engine, replace=force).partial.exists()
        raise _Interrupted(f"interrupted; {KEPT if kept else 'nothing was built'}") from None
    seconds = time.monotonic() - started
    size = sum(record.bytes for record in manifest.files.values())
    if as_json:
        summary = {"engine": str(engine), "files": len(manifest.files), "bytes": size, "seconds": round(seconds, 3)}
        click.echo(json.dumps({**summary, "max_context": manifest.max_context, "passes": list(manifest.passes)}))
        return
    click.echo(f"{engine}: {size / 1e9:.3f} GB in {len(manifest.files)} files, {seconds:.1f} s ({_described(options)})")


def _policy(quant: str, block_size: int | None, fit_scales: bool, policy_file: Path | None) -> Policy | None:
    from l4export.quantization.policy import load_policy, standard_policy

    if policy_file is None:
        return standard_policy(quant, block_size, fit_scales)
    if quant != "none" or block_size is not None or fit_scales:
        raise InputError("--policy says everything: leave --quant, --block-size and --fit-scales out")
    return load_policy(policy_file)


def _check_auto(quant: str, bits: float | None, chosen: bool) -> None:
    """`chosen`: whether other options say what `--quant auto` is to find out."""
    if (quant == "auto") != (bits is not None):
        raise InputError("--quant auto and --bits-per-weight go together: give both, as in --bits-per-weight 4.5")
    if quant == "auto" and chosen:
        raise InputError("--quant auto chooses blocks and schemes: leave --block-size, --fit-scales and --policy out")


def _chosen(checkpoint: Path, options: BuildOptions, bits: float) -> BuildOptions:
    """The options with the policy that `--quant auto` chooses."""
    from l4export.compiler.auto_policy import PolicyChooser

    with step_progress() as tell:
        auto = PolicyChooser(checkpoint, options, tell).choose(bits)
    _notice(
        f"chosen: {auto.bits_per_weight:.3f} bits per weight, KL {auto.measured_kl:.4g} on {auto.text.tokens} tokens "
        f"({auto.predicted_kl:.4g} predicted)"
    )
    return dataclasses.replace(options, policy=auto.policy, auto=auto.to_dict())


def _write_policy(policy: Policy | None, path: Path) -> None:
    if policy is None:
        raise InputError("--write-policy: nothing is quantised; give --quant")
    path.write_text(policy.to_toml(), encoding="utf-8")


def _calibration_text(name: str | None) -> Path | None:
    from l4export.calibration.text import DEFAULT_TEXT

    return DEFAULT_TEXT if name == "default" else Path(name) if name else None


def _show_plan(planned: BuildPlan, engine: Path, as_json: bool) -> None:
    files = planned.data_files
    summary = {
        "engine": str(engine),
        "files": files,
        "bytes": sum(files.values()),
        "parts": planned.parts,
        "max_context": planned.max_context,
        "nodes": len(planned.model.graph),
        "passes": list(planned.passes),
    }
    if as_json:
        click.echo(json.dumps(summary))
        return
    click.echo(f"{engine}: would hold {sum(files.values()) / 1e9:.3f} GB of weights ({_described(planned.options)})")
    for name, size in files.items():
        click.echo(f"  {name}  {size:,} bytes")
    if len(planned.parts) > 1:
        click.echo(f"  engines of the layers {', '.join(f'{start}:{stop}' for start, stop in planned.parts)}")
    click.echo(f"  passes: {', '.join(planned.passes)}; {summary['nodes']} nodes; context {planned.max_context}")


def _layers(text: str | None) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text or "", re.ASCII)
    if text is not None and not match:
        raise InputError(f"--layers {text[:40]!r} is not a range; write A:B for the layers A to B - 1, as 0:4")
    return (int(match[1]), int(match[2])) if match else None


def _notice(line: str) -> None:
    print(f"l4export: {line}", file=sys.stderr)  # not click.echo: a progress bar that is on the screen moves aside


def _described(options: BuildOptions) -> str:
    kinds = sorted({rule.kind for rule in options.policy.rules}) if options.policy else []
    calibrated = [f"{options.activations} activations"] if options.activations else []
    calibrated += ["calibrated"] if options.calibrate else []
    cache = f"KV {options.kv_layout} {options.cache_dtype}"
    return ", ".join([options.target, options.dtype, *kinds, *calibrated, cache])
