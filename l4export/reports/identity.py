"""What a report says of itself: which program made it, of what, on which machine, and how long that took."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l4export._version import __version__

__all__ = ["EngineIdentity", "Host", "Identity", "Program", "ReferenceIdentity", "versions"]

_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt-rtx-cu13",
    "tensorrt",
    "torch",
    "transformers",
    "compressed-tensors",
    "onnx",
    "numpy",
)
"""Packages that compute what a report has. Those that are not installed are left out."""

_CPUINFO = Path("/proc/cpuinfo")
_GPUS = Path("/proc/driver/nvidia/gpus")


def versions() -> dict[str, str]:
    """The versions of Python, l4export and the installed packages that compute."""
    found = {"python": platform.python_version(), "l4export": __version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Host:
    """The machine: its system, its CPU and so many cores of it for this process, and its NVIDIA GPUs by name."""

    system: str
    cpu: str
    cores: int
    gpus: tuple[str, ...]

    @classmethod
    def this(cls) -> Host:
        """This machine. What the system does not tell is empty."""
        return cls(
            system=platform.platform(),
            cpu=_field(_CPUINFO, "model name") or platform.machine(),
            cores=len(os.sched_getaffinity(0)),
            gpus=tuple(filter(None, (_field(path, "Model") for path in sorted(_GPUS.glob("*/information"))))),
        )


@dataclass(frozen=True)
class Program:
    """What made a report: the version of l4export, and SHA-256 of the code that decides an engine's bytes."""

    version: str
    sha256: str


@dataclass(frozen=True)
class EngineIdentity:
    """What was judged.

    Attributes:
        path: Its directory.
        manifest_sha256: The digest of its manifest, which has the digests of all its files.
        built_by: The program that built it.
        target: What it was built for.
        options: Those of its build.
        source_sha256: The digest of the checkpoint's files that it was built from, as `ReferenceIdentity.sha256`.
    """

    path: str
    manifest_sha256: str
    built_by: str
    target: str
    options: dict[str, Any]
    source_sha256: str


@dataclass(frozen=True)
class ReferenceIdentity:
    """What it was compared with.

    `sha256` is over the names and digests of the checkpoint's files that the engine was built from, and
    `is_source` says whether they are those that it was built from, byte for byte.
    """

    path: str
    sha256: str
    is_source: bool


@dataclass(frozen=True)
class Identity:
    """Everything of the above, and how the report came to be.

    `command` is the command line, `began` the time of its beginning (UTC, ISO 8601), and `seconds` how long it took.
    `provider` is what executed the engine. `seed` chose the tokens; it is None where nothing was chosen.
    """

    program: Program
    command: str
    began: str
    seconds: float
    host: Host = field(default_factory=Host.this)
    versions: dict[str, str] = field(default_factory=versions)
    engine: EngineIdentity | None = None
    reference: ReferenceIdentity | None = None
    provider: str | None = None
    seed: int | None = None

    def rows(self) -> tuple[tuple[str, str], ...]:
        """All of it as (name, text) for a person, without what is not known."""
        engine, reference, host = self.engine, self.reference, self.host
        source = "the checkpoint that it was built from" if reference and reference.is_source else "another checkpoint"
        rows = [
            ("command", self.command),
            ("began", self.began),
            ("took", f"{self.seconds:.1f} s"),
            ("program", f"l4export {self.program.version}, code {self.program.sha256[:16]}"),
            ("versions", ", ".join(f"{name} {version}" for name, version in self.versions.items())),
            ("host", ", ".join((host.cpu, f"{host.cores} cores", *host.gpus, host.system))),
            ("provider", self.provider),
            ("seed", None if self.seed is None else str(self.seed)),
        ]
        if engine is not None:
            rows += [
                ("engine", f"{engine.path}, for {engine.target}"),
                ("its manifest", engine.manifest_sha256),
                ("built by", engine.built_by),
                ("built from", engine.source_sha256),
                *((f"option {name}", json.dumps(value)) for name, value in _options(engine.options)),
            ]
        if reference is not None:
            rows += [("reference", f"{reference.path}, {source}"), ("its files", reference.sha256)]
        return tuple((name, text) for name, text in rows if text)


def _options(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The options of a build one by one; those of a group follow its name."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", item) for inner, item in value.items())
        else:
            yield name, value


def _field(path: Path, name: str) -> str:
    """The value of the first line `name: value` of a small file; empty where there is none."""
    try:
        found = re.search(rf"^{name}\s*:\s*(.+)$", path.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""
