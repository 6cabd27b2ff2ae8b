#!/usr/bin/env bash
# Builds the wheels, installs them with the extra `cpu` alone in a fresh environment, and uses them far from the checkout.
# No torch there: building and running an engine must not need it.
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$repository/${VENV:-.venv}/bin/python" -m build --wheel --outdir "$work/dist" "$repository" >"$work/build.log" 2>&1 ||
    { cat "$work/build.log"; exit 1; }
python3.11 -m venv "$work/venv"
wheel=$(ls "$work"/dist/*.whl)
"$work/venv/bin/pip" install --quiet --constraint "$repository/constraints.txt" "$wheel[cpu]"
headers=$repository/build/onnxruntime-headers
"$repository/runtimes/cpp/onnxruntime_headers.sh" "$headers"
ONNXRUNTIME_INCLUDE_DIR=$headers/usr/include/onnxruntime "$work/venv/bin/pip" install --quiet "$repository/runtimes/cpp"
cd "$work"
cat >use.py <<'PYTHON'
import importlib.metadata
import importlib.util
from pathlib import Path

import l4export
import l4export.passes
import l4export.runtimes

package = Path(l4export.__file__).parent
assert "site-packages" in package.parts, package
assert (package / "py.typed").is_file() and (package / "engine" / "manifest.schema.json").is_file()
assert (package / "reports" / "report.schema.json").is_file() and (package / "reports" / "report.html.jinja").is_file()
assert importlib.metadata.version("l4export") == l4export.__version__
assert importlib.util.find_spec("torch") is None
engine = l4export.runtimes.load("engine")
tokens = list(engine.generate([1, 2, 3], max_new_tokens=40, stop_token_ids=()))
assert len(tokens) == 40, tokens
PYTHON
l4export=$work/venv/bin/l4export
"$l4export" sample checkpoint --variant maverick
"$l4export" build checkpoint -o engine
"$l4export" verify engine
"$l4export" inspect engine --json >/dev/null
"$l4export" run engine --token-ids 1,2,3 --max-new-tokens 8
"$work/venv/bin/python" use.py
"$work/venv/bin/l4run" engine --token-ids 1,2,3 --max-new-tokens 8
test -f "$("$l4export" native --path)/include/l4export.h"
digest='from l4export.compiler.provenance import program_digest; print(program_digest())'
installed=$("$work/venv/bin/python" -c "$digest")
checkout=$(cd "$repository" && "${VENV:-.venv}/bin/python" -c "$digest")
test "$installed" = "$checkout" || { echo "program digest: wheel $installed, checkout $checkout"; exit 1; }
echo "wheels: installed and used without torch"
