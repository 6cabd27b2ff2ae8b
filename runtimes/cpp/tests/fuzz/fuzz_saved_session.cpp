// Fuzzes the reader of saved sessions, for an engine of two layers, one of them with caches of one chunk.
#include <cstdint>
#include <cstdlib>

#include "base/error.hpp"
#include "engine/manifest.hpp"
#include "memory_file.hpp"
#include "session/saved_session.hpp"

namespace {

l4::engine::Manifest small_engine() {
  l4::engine::Manifest manifest;
  manifest.model.vocab_size = 256;
  manifest.model.num_key_value_heads = 2;
  manifest.model.head_dim = 4;
  manifest.max_context = 64;
  manifest.kv_layout = "chunked";
  manifest.kv_storage = {"int8", 1};
  manifest.kv_layers = {{"chunked", 16}, {"full", 64}};
  manifest.prefill_cut = 16;
  manifest.vision.emplace();
  manifest.sha256 = "engine";
  return manifest;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const l4::engine::Manifest manifest = small_engine();
  const MemoryFile memory(data, size);
  try {
    const l4::SavedSession saved = l4::read_session(memory.path(), manifest);
    for (std::size_t row = 0; row < saved.state.rows(); ++row) {
      if (static_cast<std::int64_t>(saved.state.ids[row].size()) != saved.state.lengths[row]) std::abort();
      if (saved.rows[row].size() != 4) std::abort();
    }
  } catch (const l4::Error&) {
  }
  return 0;
}
