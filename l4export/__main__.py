"""`python -m l4export`."""

from __future__ import annotations

from l4export.cli import main

main()
