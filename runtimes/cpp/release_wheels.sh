#!/usr/bin/env bash
# Build the wheels of l4export-native for x86_64 and aarch64 into $1, by zig: they need glibc 2.28 and nothing else.
# Run it with a Python environment first on the PATH that has ziglang, and with ONNXRUNTIME_INCLUDE_DIR set.
set -euo pipefail
out=$(realpath -m "${1:?a directory for the wheels}")
here=$(cd "$(dirname "$0")" && pwd)
zig=$(python -c 'import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).parent / "zig")')
for machine in x86_64 aarch64; do
  python -m pip wheel --quiet --no-deps --wheel-dir "$out" "$here" \
      -C wheel.tags="py3-none-manylinux_2_28_$machine" -C install.strip=false \
      -C cmake.define.CMAKE_TOOLCHAIN_FILE="$here/cmake/zig.cmake" \
      -C cmake.define.ZIG="$zig" -C cmake.define.L4EXPORT_ARCHITECTURE="$machine"
done
