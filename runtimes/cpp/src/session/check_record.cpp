#include "session/check_record.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/error.hpp"
#include "storage/safetensors.hpp"

namespace l4 {
namespace {

using Shape = std::vector<std::int64_t>;

Error damaged(const std::string& path) {
  return bad_input(path + ": is not the record of this engine's check graph; build the engine again");
}

template <typename T>
std::vector<T> values(const storage::TensorFile& file, const char* name, const char* dtype, const Shape& shape) {
  const storage::TensorEntry* entry = file.find(name);
  if (entry == nullptr || entry->dtype != dtype || entry->shape != shape) throw damaged(file.path());
  const std::string_view bytes = file.bytes(*entry);
  std::vector<T> read(bytes.size() / sizeof(T));
  std::memcpy(read.data(), bytes.data(), bytes.size());
  return read;
}

// How many images there are in what a check is fed: see l4export/engine/check_images.py.
std::int64_t image_count(const engine::CheckCalls& check, std::int64_t rows) {
  const std::int64_t many = check.calls[0], middle = many / 2 - rows / 2;
  const std::int64_t in_first = middle > 2 + rows && many >= middle + rows + 2 ? 2 : 0;
  return in_first + (check.calls.size() > 1 && check.calls[1] >= rows + 2);
}

}  // namespace

std::int64_t kept_positions(const engine::CheckCalls& check) {
  return check.calls[0] + static_cast<std::int64_t>(check.calls.size()) - 1;
}

CheckRecord read_check_record(const std::string& path, const engine::CheckCalls& check,
                              const engine::Manifest& decoder) {
  const storage::TensorFile file(path);
  const storage::TensorEntry* some = file.find("columns");
  if (some == nullptr || some->shape.size() != 1 || some->shape[0] < 1) throw damaged(path);
  const std::int64_t columns = some->shape[0], vocab = decoder.model.vocab_size;
  const std::int64_t tokens = std::accumulate(check.calls.begin(), check.calls.end(), std::int64_t{0});
  CheckRecord record{values<std::int32_t>(file, "ids", "I32", {tokens}),
                     values<std::int32_t>(file, "columns", "I32", {columns}),
                     values<float>(file, "sampled", "F32", {kept_positions(check), columns}),
                     values<float>(file, "whole", "F32", {2, vocab}),
                     {}};
  std::size_t due = 4;
  if (decoder.vision) {
    const std::int64_t rows = decoder.vision->rows_per_tile, images = image_count(check, rows);
    if (images != 0) {
      record.features = values<std::byte>(file, "features", "F16", {images, rows, decoder.model.hidden_size});
      ++due;
    }
    if (std::count(record.ids.begin(), record.ids.end(), decoder.vision->image_token_id) != images * rows) {
      throw damaged(path);
    }
  }
  if (file.entries().size() != due) throw damaged(path);
  for (const auto* ids : {&record.ids, &record.columns}) {
    for (const std::int32_t id : *ids) {
      if (id < 0 || id >= vocab) throw damaged(path);
    }
  }
  return record;
}

}  // namespace l4
