"""Numbers are read and written alike in every locale of the process that uses the library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from native_library import run

PROGRAM = """if True:
    import ctypes, json, locale, sys
    from native_chats import called, native_template
    native = native_template("{{ 1.5 + 1 }} {{ '2.5' | float }} {{ 2.5 | round(1) }} {{ x }} {{ '1.5e400' | float }}")
    assert locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
    strtod = ctypes.CDLL(None).strtod
    strtod.restype = ctypes.c_double
    assert strtod(b"1,5", None) == 1.5
    document = b'{"messages": [], "x": 1.5e400}'
    print(bytes(called("render_chat", native, document, ctypes.c_char)).decode())
"""


@pytest.mark.skipif(shutil.which("localedef") is None, reason="a locale cannot be made here")
def test_a_decimal_comma_changes_no_number(tmp_path: Path) -> None:
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("this system has no sources of locales")
    path = os.pathsep.join(filter(None, sys.path))
    said = run(sys.executable, "-c", PROGRAM, PYTHONPATH=path, LOCPATH=str(tmp_path))
    assert said == "2.5 2.5 2.5 inf inf\n"
