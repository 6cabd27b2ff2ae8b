"""`l4export native`."""

from __future__ import annotations

import json
import shlex

import click

from l4export.errors import EnvironmentLacks

__all__ = ["command"]


@click.command("native")
@click.option("--cflags", is_flag=True, help="Arguments of a compiler.")
@click.option("--libs", is_flag=True, help="Arguments of a linker.")
@click.option("--path", is_flag=True, help="The directory for CMAKE_PREFIX_PATH.")
@click.option("--onnxruntime", is_flag=True, help="This environment's ONNX Runtime library, for L4EXPORT_ONNXRUNTIME.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(cflags: bool, libs: bool, path: bool, onnxruntime: bool, as_json: bool) -> None:
    """Show where the native library is, and how to compile and link with it.

    It is the package l4export-native. What is asked for is printed on one line: cc main.c $(l4export native --cflags
    --libs). Without an option everything is shown.
    """
    from l4export.native import native_files

    files = native_files()
    if onnxruntime and files.onnxruntime is None:
        raise EnvironmentLacks("onnxruntime is not installed in this environment; pip install onnxruntime")
    asked = [
        *(files.cflags if cflags else ()),
        *(files.libs if libs else ()),
        *([str(files.path)] if path else ()),
        *([str(files.onnxruntime)] if onnxruntime else ()),
    ]
    facts = {
        "path": str(files.path),
        "include": str(files.include),
        "library": str(files.library),
        "kernels": str(files.kernels),
        "l4run": str(files.l4run),
        "cflags": list(files.cflags),
        "libs": list(files.libs),
        "onnxruntime": None if files.onnxruntime is None else str(files.onnxruntime),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    elif asked:
        click.echo(shlex.join(asked))
    else:
        for name, value in facts.items():
            click.echo(f"{name:<12} {shlex.join(value) if isinstance(value, list) else value or 'not installed'}")
