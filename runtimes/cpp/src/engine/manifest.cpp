#include "engine/manifest.hpp"

#include <sys/stat.h>

#include <algorithm>

#include "base/error.hpp"
#include "engine/manifest_checks.hpp"
#include "engine/manifest_reader.hpp"
#include "storage/files.hpp"
#include "storage/json_document.hpp"

namespace l4::engine {

namespace {

constexpr std::uint64_t kMaxBytes = 64ull << 20;

bool is_directory(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

}  // namespace

bool Manifest::needs_cpu_kernels() const {
  return std::find(requires_features.begin(), requires_features.end(), kCpuKernels) != requires_features.end();
}

const Graph& Manifest::portable() const {
  const Graph* graph = graphs.find(kPortable);
  return graph == nullptr ? decoder() : *graph;
}

Manifest read_manifest(std::string text, const std::string& where) {
  Manifest manifest = read_fields(storage::parse_json_object(text, where), where);
  check_manifest(manifest, where);
  manifest.sha256 = storage::sha256(text);
  manifest.text = std::move(text);
  return manifest;
}

Manifest load_manifest(const std::string& directory) {
  const std::string path = storage::in_directory(directory, kManifestFile);
  const auto size = storage::regular_size(path);
  if (!size && storage::regular_size(storage::in_directory(directory, "l4export/manifest.json"))) {
    throw bad_input(
        directory +
        ": is a checkpoint, which vLLM, SGLang and transformers run, not l4export; build an engine from the "
        "checkpoint that it was made from");
  }
  if (!is_directory(directory)) {
    throw bad_input(directory + ": no such engine directory; build one with `l4export build`");
  }
  if (!size) {
    throw bad_input(directory + ": not an engine directory (no " + kManifestFile +
                    "); build one with `l4export build`");
  }
  if (*size > kMaxBytes) {
    throw bad_input(path + ": too large for a manifest (over " + std::to_string(kMaxBytes >> 20) +
                    " MiB); build it again");
  }
  return read_manifest(storage::read_small(path, kMaxBytes, "build the engine again"), path);
}

}  // namespace l4::engine
