// Fuzzes the reader of a check graph's record, for an engine that sees images of four rows.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "base/error.hpp"
#include "memory_file.hpp"
#include "session/check_record.hpp"

namespace {

constexpr std::int64_t kImageToken = 7, kRows = 4;

l4::engine::Manifest small_engine() {
  l4::engine::Manifest manifest;
  manifest.model.vocab_size = 8;
  manifest.model.hidden_size = 2;
  manifest.vision.emplace();
  manifest.vision->image_token_id = kImageToken;
  manifest.vision->rows_per_tile = kRows;
  return manifest;
}

l4::engine::CheckCalls small_check() {
  l4::engine::CheckCalls check{};
  check.calls = {20, 6, 1};
  return check;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const l4::engine::Manifest manifest = small_engine();
  static const l4::engine::CheckCalls check = small_check();
  const MemoryFile memory(data, size);
  try {
    const l4::CheckRecord record = l4::read_check_record(memory.path(), check, manifest);
    const auto images = std::count(record.ids.begin(), record.ids.end(), kImageToken) / kRows;
    const auto row_bytes = static_cast<std::size_t>(manifest.model.hidden_size) * 2;
    if (record.features.size() != static_cast<std::size_t>(images * kRows) * row_bytes) std::abort();
    if (record.ids.size() != 27 || record.sampled.size() != 22 * record.columns.size()) std::abort();
  } catch (const l4::Error&) {
  }
  return 0;
}
