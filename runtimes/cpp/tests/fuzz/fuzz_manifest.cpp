// Fuzzes the reader of manifests, and its checks that the fields agree with each other.
#include <cstdint>
#include <string>

#include "base/error.hpp"
#include "engine/manifest.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    l4::engine::read_manifest(std::string(reinterpret_cast<const char*>(data), size), "manifest");
  } catch (const l4::Error&) {
  }
  return 0;
}
