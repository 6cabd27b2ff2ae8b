#!/usr/bin/env bash
# Print the path of a clang++ that has libFuzzer: $CLANG, or the installed one, or Debian's packages, unpacked into $1
# without being installed.
set -euo pipefail
out=$(realpath -m "${1:?a directory for clang}")
fuzzes() { echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' |
  "$1" -fsanitize=fuzzer,address -x c++ -o /dev/null - 2>/dev/null; }
for installed in ${CLANG:-} clang++; do
  if command -v "$installed" >/dev/null && fuzzes "$installed"; then command -v "$installed"; exit 0; fi
done
if [ ! -x "$out/clang++" ]; then
  version=$(apt-cache depends clang | sed -n 's/.*Depends: clang-//p')
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  only=(--no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances)
  packages=$(apt-cache depends --recurse "${only[@]}" "clang-$version" "libclang-rt-$version-dev" |
    grep '^[a-z]' | sort -u)
  lacking=$(for package in $packages; do dpkg -s "$package" >/dev/null 2>&1 || echo "$package"; done)
  (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download $lacking)
  rm -rf "$out" && mkdir -p "$out"
  for package in "$work"/*.deb; do dpkg -x "$package" "$out"; done
  libraries=$out/usr/lib/$(gcc -print-multiarch):$out/usr/lib/llvm-$version/lib
  printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' \
    "$libraries" "$out/usr/lib/llvm-$version/bin/clang++" >"$out/clang++"
  chmod +x "$out/clang++"
fi
fuzzes "$out/clang++"
echo "$out/clang++"
