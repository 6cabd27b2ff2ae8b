"""Pictures of reports for the documentation, taken by a headless Chromium.

    python tests/benchmarks/report_screenshots.py [--chromium chromium] [--output docs/reference/reports]

builds the trained example, compares it and measures its quality, and takes the beginning of the pages as a wide screen
in light colours and as a telephone in dark ones shows it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
MODEL, TEXT = "examples/kjv/model", "examples/kjv/README.md"
REPORTS = {
    "parity": ("parity", "kjv", "--reference", MODEL, "--prefill", "200", "--decode", "64"),
    "layers": ("parity", "kjv-int4", "--reference", MODEL, "--stream", "--dequantized", "--prefill", "200"),
    "quality": ("quality", "kjv-int4", "--reference", MODEL, "--text", TEXT, "--threshold", "kl=0.2"),
}
SCREENS = {"wide": (1280, 1900, "light"), "narrow": (390, 1900, "dark")}
"""Width and height in pixels, and the colour scheme that the page is asked for."""
PICTURES = (("parity", "wide"), ("parity", "narrow"), ("layers", "wide"), ("quality", "wide"), ("quality", "narrow"))


def l4export(work: Path, *arguments: str) -> None:
    """Run a command in a directory; its output is shown."""
    subprocess.run([sys.executable, "-m", "l4export", *arguments], cwd=work, check=True)


def screenshot(chromium: str, page: Path, picture: Path, width: int, height: int, scheme: str) -> None:
    """Take the top of a page."""
    preferred = {"dark": 0, "light": 1}[scheme]
    options = [f"--window-size={width},{height}", f"--blink-settings=preferredColorScheme={preferred}"]
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={picture}"]
    subprocess.run([chromium, *quiet, *options, page.as_uri()], check=True, capture_output=True)
    Image.open(picture).convert("RGB").quantize(64).save(picture, optimize=True)  # a third of the bytes


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--chromium", default="chromium")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/reference/reports")
    given = parser.parse_args()
    given.output.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "examples").symlink_to(ROOT / "examples")
        l4export(work, "build", MODEL, "-o", "kjv")
        l4export(work, "build", MODEL, "-o", "kjv-int4", "--quant", "int4")
        for name, arguments in REPORTS.items():
            l4export(work, *arguments, "-o", f"{name}.html")
        for name, screen in PICTURES:
            picture = given.output.resolve() / f"{name}-{screen}.png"
            screenshot(given.chromium, work / f"{name}.html", picture, *SCREENS[screen])


if __name__ == "__main__":
    main()
