#!/usr/bin/env bash
# Unpack ONNX Runtime's C headers from Debian's package libonnxruntime-dev into $1, unless they are there; nothing is
# installed. On Debian alone: elsewhere take them from ONNX Runtime's releases and set -DONNXRUNTIME_INCLUDE_DIR.
set -euo pipefail
out=${1:?a directory for the headers}
suite=${2:-trixie}  # its headers have API 21; the library may be any later one
headers=$out/usr/include/onnxruntime
if [ -f "$headers/onnxruntime_c_api.h" ]; then exit 0; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/lists/partial "$work"/cache/archives/partial
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.{sources,list} 2>/dev/null |
  grep -oE '(URIs:|^deb ).*' | grep -oE '[a-z]+://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ') || true
[ -n "$mirror" ] || { echo "onnxruntime_headers.sh: apt has no mirror of Debian; see README.md" >&2; exit 1; }
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keyring] $mirror $suite main" >"$work/sources.list"
options=(-o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
  -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root)
apt-get "${options[@]}" -qq update
(cd "$work" && apt-get "${options[@]}" -qq download "libonnxruntime-dev/$suite")
dpkg -x "$work"/libonnxruntime-dev_*.deb "$work/package"
mkdir -p "$(dirname "$headers")"  # whatever else is in $out stays
rm -rf "$headers.partial" && cp -r "$work/package/usr/include/onnxruntime" "$headers.partial"
rm -rf "$headers" && mv "$headers.partial" "$headers"  # all of them at once
