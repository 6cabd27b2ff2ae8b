#!/usr/bin/env bash
# Run every fuzz target, or those that are named, for $1 seconds each, with address and undefined sanitizers.
# What is found on the way is kept in build/fuzz/corpus, inputs that end a target in build/fuzz/failures.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../../../..
build=$root/build/fuzz
seconds=${1:?seconds for each target}
shift
headers=${ONNXRUNTIME_INCLUDE_DIR:-$root/build/onnxruntime-headers/usr/include/onnxruntime}
[ -d "$headers" ] || "$here/../../onnxruntime_headers.sh" "$root/build/onnxruntime-headers"
cmake -S "$here/../.." -B "$build" -G Ninja -DCMAKE_CXX_COMPILER="$("$here/clang.sh" "$root/build/clang")" \
    -DONNXRUNTIME_INCLUDE_DIR="$headers" -DL4EXPORT_TESTS=ON -DL4EXPORT_SANITIZE=address,undefined >/dev/null
targets=("${@:-}")
[ -n "${targets[0]}" ] || targets=($(basename -s .cpp -a "$here"/fuzz_*.cpp | sed s/fuzz_//))
cmake --build "$build" --target "${targets[@]/#/fuzz_}" >"$build/build.log" || { cat "$build/build.log"; exit 1; }
mkdir -p "$build/failures"
for name in "${targets[@]}"; do
  mkdir -p "$build/corpus/$name"
  "$build/tests/fuzz_$name" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
      -artifact_prefix="$build/failures/$name-" "$build/corpus/$name" "$here/corpus/$name" >"$build/$name.log" 2>&1 ||
      { tail -n 60 "$build/$name.log"; exit 1; }
  echo "$name: $(sed -n 's/stat::number_of_executed_units: *//p' "$build/$name.log") runs"
done
