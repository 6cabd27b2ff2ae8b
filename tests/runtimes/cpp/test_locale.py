"""Numbers are read and written alike in every locale of the process that uses the library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from native_library import run

WITH_A_COMMA = """LC_NUMERIC
decimal_point "<U002C>"
thousands_sep ""
grouping -1
END LC_NUMERIC
"""
"""The source of a locale, so that none need be installed."""

PROGRAM = """if True:
    import ctypes, json, locale, sys
    from native_chats import called, native_template
    native = native_template("{{ 1.5 + 1 }} {{ '2.5' | float }} {{ 2.5 | round(1) }} {{ x }} {{ '1.5e400' | float }}")
    assert locale.setlocale(locale.LC_ALL, "comma")
    strtod = ctypes.CDLL(None).strtod
    strtod.restype = ctypes.c_double
    assert strtod(b"1,5", None) == 1.5
    document = b'{"messages": [], "x": 1.5e400}'
    print(bytes(called("render_chat", native, document, ctypes.c_char)).decode())
"""


def test_a_decimal_comma_changes_no_number(tmp_path: Path) -> None:
    (tmp_path / "source").write_text(WITH_A_COMMA)
    made = ["localedef", "--force", "--quiet", "-i", tmp_path / "source", "-f", "ANSI_X3.4-1968", tmp_path / "comma"]
    subprocess.run(made, capture_output=True, check=False)  # it fails, for there is but one category, and has made it
    path = os.pathsep.join(filter(None, sys.path))
    said = run(sys.executable, "-c", PROGRAM, PYTHONPATH=path, LOCPATH=str(tmp_path))
    assert said == "2.5 2.5 2.5 inf inf\n"
