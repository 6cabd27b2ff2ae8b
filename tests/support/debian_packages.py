"""Packages of Debian and Ubuntu that some slow tests need."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from native_library import run

__all__ = ["install"]


def install(*packages: str) -> None:
    """Install those that are missing. Where that takes another user or another system, the test is skipped."""
    missing = [name for name in packages if not _is_installed(name)]
    if not missing:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        pytest.skip(f"as root: apt-get install {' '.join(missing)}")
    waiting = ("-qq", "-o", "DPkg::Lock::Timeout=600")
    run("apt-get", *waiting, "update")
    run("apt-get", *waiting, "install", "--yes", "--no-install-recommends", *missing, DEBIAN_FRONTEND="noninteractive")


def _is_installed(package: str) -> bool:
    if shutil.which("dpkg-query") is None:
        return False
    asked = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    told = subprocess.run(asked, capture_output=True, text=True, check=False)
    return told.stdout == "installed"
