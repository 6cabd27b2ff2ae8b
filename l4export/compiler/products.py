"""What builds make, as directories: an engine, or a checkpoint for other programs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from l4export.engine.check_record import CHECK_RECORD
from l4export.engine.checkpoint_manifest import CHECKPOINT_FORMAT, CHECKPOINT_MANIFEST, OWN_FOLDER
from l4export.engine.companions import SETTINGS_FILES, TEMPLATE_FOLDER, is_companion
from l4export.engine.manifest import CHECK, DECODER, FORMAT, MANIFEST, PORTABLE, VISION
from l4export.targets.genai_config import GENAI_FILES

__all__ = ["CALIBRATION_REPORT", "CHECKPOINT", "ENGINE", "PRODUCTS", "Product"]

CALIBRATION_REPORT = "calibration.json"
"""The file of a product that tells how its calibration went."""

_GRAPHS = (f"{PORTABLE}.onnx", f"{CHECK}.onnx", CHECK_RECORD)
_OF_ENGINE = (MANIFEST, CALIBRATION_REPORT, *GENAI_FILES, *_GRAPHS, *SETTINGS_FILES)
_OF_GRAPH = re.compile(rf"({DECODER}|{VISION})(-\d{{5}}-of-\d{{5}})?\.(onnx|data|engine)")
_OF_CHECKPOINT = re.compile(
    r"config\.json|model\.safetensors\.index\.json|model(-\d{5}-of-\d{5})?\.safetensors"
    rf"|{TEMPLATE_FOLDER}/[^/]+\.jinja|{OWN_FOLDER}/{re.escape(CALIBRATION_REPORT)}"
)


@dataclass(frozen=True)
class Product:
    """A kind of directory that builds make.

    Attributes:
        name: In messages.
        what: How messages tell it from anything else.
        manifest: The path of its manifest in it, by which it is recognised.
        format: What the manifest says that it is.
        report: The path in it of the report on a calibration.
        folders: The folders in it.
        writes: Whether a build writes a file of this path.
        owns_by_name: Whether such a file is the product's even if the manifest does not list it, or with another size.
            A checkpoint's names are everybody's, so there only what the manifest lists counts.
    """

    name: str
    what: str
    manifest: str
    format: str
    report: str
    folders: tuple[str, ...]
    writes: Callable[[str], bool]
    owns_by_name: bool

    @property
    def staged_manifest(self) -> str:
        """The manifest, before it has its name."""
        return f"{self.manifest}.partial"


ENGINE = Product(
    name="engine",
    what="an engine directory",
    manifest=MANIFEST,
    format=FORMAT,
    report=CALIBRATION_REPORT,
    folders=(),
    writes=lambda name: name in _OF_ENGINE or bool(_OF_GRAPH.fullmatch(name)),
    owns_by_name=True,
)

CHECKPOINT = Product(
    name="checkpoint",
    what="a checkpoint that l4export wrote",
    manifest=CHECKPOINT_MANIFEST,
    format=CHECKPOINT_FORMAT,
    report=f"{OWN_FOLDER}/{CALIBRATION_REPORT}",
    folders=(OWN_FOLDER, TEMPLATE_FOLDER),
    writes=lambda name: bool(_OF_CHECKPOINT.fullmatch(name)) or is_companion(name),
    owns_by_name=False,
)

PRODUCTS = (ENGINE, CHECKPOINT)
