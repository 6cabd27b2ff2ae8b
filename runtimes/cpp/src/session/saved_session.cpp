#include "session/saved_session.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "base/error.hpp"
#include "base/json.hpp"
#include "cache/cache_spec.hpp"
#include "cache/chunks.hpp"
#include "storage/json_document.hpp"
#include "storage/safetensors_writer.hpp"
#include "storage/sha256.hpp"

namespace l4 {

namespace {

constexpr const char* kFormat = "l4export-session-3";
constexpr std::int64_t kNoCount = std::int64_t{1} << 48;  // more tokens than there can be

Error damaged(const std::string& path, const std::string& why) {
  return bad_input(path + ": damaged: " + why + "; feed the prompt anew");
}

// What safetensors calls the dtype of a cache.
std::string tensor_dtype(const std::string& dtype) {
  constexpr std::pair<const char*, const char*> names[] = {
      {"float32", "F32"}, {"float16", "F16"}, {"bfloat16", "BF16"}, {"int8", "I8"}, {"uint8", "U8"}};
  for (const auto& [name, told] : names) {
    if (dtype == name) return told;
  }
  throw std::logic_error("a cache of " + dtype);
}

std::string ids_name(std::size_t row) { return std::to_string(row) + ".ids"; }

json::Array numbers(const std::vector<std::int64_t>& values) { return json::Array(values.begin(), values.end()); }

std::string state_json(const SessionState& state) {
  json::Array images;
  for (const auto& row : state.images) {
    json::Array placed;
    for (const PlacedImage& image : row) placed.push_back(json::Array{image.start, image.stop, image.digest});
    images.push_back(std::move(placed));
  }
  json::Object object;
  object.add("capacity", state.capacity);
  object.add("lengths", numbers(state.lengths));
  object.add("starts", numbers(state.starts));
  object.add("held", numbers(state.held));
  object.add("images", std::move(images));
  return json::dump(std::move(object), true);
}

std::string_view bytes_of(const std::vector<std::int64_t>& ids) {
  return {reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(std::int64_t)};
}

// The tensors of a session, in their order; they point to what they are made of.
std::vector<storage::NewTensor> tensors_of(const CacheSpec& spec, const SessionState& state,
                                           const std::vector<RowArrays>& rows) {
  std::vector<storage::NewTensor> tensors;
  for (std::size_t row = 0; row < state.rows(); ++row) {
    const std::vector<std::int64_t>& ids = state.ids[row];
    tensors.push_back({ids_name(row), "I64", {state.lengths[row]}, [&ids](const auto& give) { give(bytes_of(ids)); }});
  }
  const std::string dtype = tensor_dtype(spec.dtype);
  const std::int64_t element = storage::dtype_bits(dtype) / 8;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    for (std::size_t i = 0; i < spec.names.size(); ++i) {
      const RowArray& array = rows[row].at(i);
      const auto pieces = [&array, element](const auto& give) {
        const auto size = static_cast<std::size_t>(array.tokens * array.width * element);
        const char* head = reinterpret_cast<const char*>(array.data);
        for (std::int64_t n = 0; n < array.heads && size != 0; ++n, head += array.head_stride_bytes) give({head, size});
      };
      tensors.push_back(
          {std::to_string(row) + "." + spec.names[i], dtype, {array.heads, array.tokens, array.width}, pieces});
    }
  }
  return tensors;
}

// The integers of a list of a state; none where it is no such list.
std::vector<std::int64_t> counts(const json::Value& list) {
  std::vector<std::int64_t> found;
  if (!list.is_array()) return found;
  for (const json::Value& item : list.array()) {
    if (!item.is_integer() || item.integer() < 0 || item.integer() >= kNoCount) return {};
    found.push_back(item.integer());
  }
  return found;
}

bool is_digest(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// Of a row of `length` tokens; they lie within it and one behind the other.
std::vector<PlacedImage> read_images(const json::Value& row, std::int64_t length, const std::string& path) {
  std::vector<PlacedImage> found;
  std::int64_t at = 0;
  for (const json::Value& item : row.array()) {
    const bool formed = item.is_array() && item.array().size() == 3 && item.array()[0].is_integer() &&
                        item.array()[1].is_integer() && item.array()[2].is_string();
    if (!formed) throw damaged(path, "an image is not one of its tokens");
    PlacedImage image{item.array()[0].integer(), item.array()[1].integer(), item.array()[2].string()};
    if (image.start < at || image.stop <= image.start || image.stop > length || !is_digest(image.digest)) {
      throw damaged(path, "an image is not one of its tokens");
    }
    at = image.stop;
    found.push_back(std::move(image));
  }
  return found;
}

// A state that a session of this engine can be in, without its ids.
SessionState read_state(const std::string& text, const engine::Manifest& manifest, const std::string& path) {
  const json::Value raw = storage::parse_json_object(text, path + ": state");
  const json::Value *capacity = raw.find("capacity"), *images = raw.find("images");
  const auto list = [&](const char* name) {
    const json::Value* found = raw.find(name);
    return counts(found == nullptr ? json::Value() : *found);
  };
  SessionState state;
  state.lengths = list("lengths");
  state.starts = list("starts");
  state.held = list("held");
  const std::size_t rows = state.rows();
  const bool counted = capacity != nullptr && counts(json::Array{*capacity}).size() == 1;
  if (raw.object().size() != 5 || !counted || images == nullptr || rows == 0 || state.starts.size() != rows ||
      state.held.size() != rows) {
    throw damaged(path, "its state is not that of a session");
  }
  state.capacity = capacity->integer();
  bool fits = 1 <= state.capacity && state.capacity <= manifest.max_context;
  const Chunks chunks(manifest.prefill_cut.value_or(0), state.starts, state.held);
  for (std::size_t row = 0; row < rows && fits; ++row) {
    fits = state.lengths[row] <= state.capacity && state.starts[row] < manifest.max_context &&
           state.end(row) <= manifest.max_context && chunks.complete(row, state.end(row));
  }
  if (!fits) throw damaged(path, "its state does not fit this engine");
  const auto is_array = [](const json::Value& value) { return value.is_array(); };
  if (!images->is_array() || images->array().size() != rows ||
      !std::all_of(images->array().begin(), images->array().end(), is_array)) {
    throw damaged(path, "its images are not those of its rows");
  }
  bool any = false;
  for (std::size_t row = 0; row < rows; ++row) {
    state.images.push_back(read_images(images->array()[row], state.lengths[row], path));
    any = any || !state.images.back().empty();
  }
  if (any && !manifest.vision) throw damaged(path, "it has images, and its engine sees none");
  return state;
}

// What each row's caches hold; nothing of the file is read but its header.
std::vector<RowArrays> read_rows(const storage::TensorFile& file, const SessionState& state,
                                 const engine::Manifest& manifest) {
  const CacheSpec spec = CacheSpec::of(manifest);
  const std::string dtype = tensor_dtype(spec.dtype);
  const std::int64_t element = storage::dtype_bits(dtype) / 8;
  const Chunks chunks(manifest.prefill_cut.value_or(0), state.starts, state.held);
  const std::vector<storage::TensorEntry>& entries = file.entries();
  const std::size_t rows = state.rows();
  const auto check = [&](bool fine) {
    if (!fine) throw damaged(file.path(), "it does not hold the keys and values of its tokens");
  };
  check(entries.size() == rows * (1 + spec.names.size()));
  for (std::size_t row = 0; row < rows; ++row) {
    const storage::TensorEntry& entry = entries[row];
    check(entry.name == ids_name(row) && entry.dtype == "I64" && entry.shape == std::vector{state.lengths[row]});
  }
  std::vector<RowArrays> found(rows);
  std::size_t at = rows;
  for (std::size_t row = 0; row < rows; ++row) {
    const std::int64_t used = chunks.used(row, state.end(row));
    for (std::size_t i = 0; i < spec.names.size(); ++i, ++at) {
      const auto [heads, tokens, width] = spec.shape(i, state.lengths[row], used);
      const storage::TensorEntry& entry = entries[at];
      check(entry.name == std::to_string(row) + "." + spec.names[i] && entry.dtype == dtype &&
            entry.shape == std::vector{heads, tokens, width});
      const auto* data = reinterpret_cast<const std::byte*>(file.bytes(entry).data());
      found[row].push_back({data, heads, tokens, width, tokens * width * element});
    }
  }
  return found;
}

// The ids of each row; `vocab` is how many there are.
std::vector<std::vector<std::int64_t>> read_ids(const storage::TensorFile& file, std::size_t rows, std::int64_t vocab) {
  std::vector<std::vector<std::int64_t>> found(rows);
  for (std::size_t row = 0; row < rows; ++row) {
    const std::string_view bytes = file.bytes(file.entries()[row]);
    found[row].resize(bytes.size() / sizeof(std::int64_t));
    if (!bytes.empty()) std::memcpy(found[row].data(), bytes.data(), bytes.size());
    for (const std::int64_t id : found[row]) {
      if (id < 0 || id >= vocab) throw damaged(file.path(), "it has ids of no tokens");
    }
  }
  return found;
}

}  // namespace

void write_session(const std::string& path, const engine::Manifest& manifest, const SessionState& state,
                   const std::vector<RowArrays>& rows) {
  const std::vector<storage::NewTensor> tensors = tensors_of(CacheSpec::of(manifest), state, rows);
  const std::string text = state_json(state);
  storage::Sha256 digest;
  digest.update(text);
  for (const storage::NewTensor& tensor : tensors) {
    tensor.pieces([&](std::string_view piece) { digest.update(piece); });
  }
  storage::write_safetensors(
      path, {{"format", kFormat}, {"engine", manifest.sha256}, {"state", text}, {"sha256", digest.hex()}}, tensors);
}

SavedSession read_session(const std::string& path, const engine::Manifest& manifest) {
  storage::TensorFile file(path);
  const auto told = [&](const char* name) {
    const std::string* value = file.metadata(name);
    return value == nullptr ? std::string() : *value;
  };
  if (told("format") != kFormat) throw bad_input(path + ": not a session that this version of l4export has saved");
  if (told("engine") != manifest.sha256) {
    throw bad_input(path + ": saved with another engine; load it with that one, or feed the prompt anew");
  }
  const std::string text = told("state");
  SessionState state = read_state(text, manifest, path);
  std::vector<RowArrays> rows = read_rows(file, state, manifest);
  storage::Sha256 digest;
  digest.update(text);
  for (const storage::TensorEntry& entry : file.entries()) digest.update(file.bytes(entry));
  if (digest.hex() != told("sha256")) throw damaged(path, "its digest differs");
  state.ids = read_ids(file, state.rows(), manifest.model.vocab_size);
  return {std::move(file), std::move(state), std::move(rows)};
}

}  // namespace l4
