// Fuzzes the reader of safetensors files; what it takes lies within the file, which reading every byte shows.
#include <cstdint>
#include <cstdlib>

#include "base/error.hpp"
#include "memory_file.hpp"
#include "storage/safetensors.hpp"
#include "storage/sha256.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const MemoryFile memory(data, size);
  try {
    const l4::storage::TensorFile file(memory.path());
    std::size_t bytes = 0;
    l4::storage::Sha256 digest;
    for (const auto& entry : file.entries()) {
      digest.update(file.bytes(entry));
      bytes += file.bytes(entry).size();
    }
    if (digest.hex().size() != 64 || bytes + 8 > size) std::abort();
  } catch (const l4::Error&) {
  }
  return 0;
}
