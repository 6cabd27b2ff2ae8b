#include "storage/safetensors.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/error.hpp"
#include "base/json.hpp"
#include "base/shown.hpp"
#include "base/utf8.hpp"
#include "storage/json_document.hpp"

namespace l4::storage {

namespace {

constexpr std::uint64_t kMaxHeader = 64ull << 20;
constexpr std::size_t kMaxRank = 32;
constexpr const char* kHint = "; download or convert the file again";

constexpr std::pair<std::string_view, unsigned> kDtypeBits[] = {
    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"BOOL", 8},        {"U8", 8},          {"I8", 8},   {"F8_E5M2", 8},
    {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16}, {"U16", 16}, {"F16", 16},
    {"BF16", 16},   {"I32", 32},    {"U32", 32},    {"F32", 32},        {"I64", 64},        {"U64", 64}, {"F64", 64},
    {"C64", 64},
};

std::string named(const std::string& tensor) {
  return python_repr(json::Value(std::string(utf8::prefix(tensor, 200))));
}

constexpr std::uint64_t kTooMany = std::numeric_limits<std::uint64_t>::max();

// Bits that a tensor takes; kTooMany where a file cannot have so many.
std::uint64_t tensor_bits(unsigned bits, const std::vector<std::int64_t>& shape) {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  std::uint64_t total = bits;
  for (const std::int64_t size : shape) {
    if (__builtin_mul_overflow(total, static_cast<std::uint64_t>(size), &total)) return kTooMany;
  }
  return total;
}

// One checked entry of the header; `base` is where the tensors' bytes begin.
TensorEntry read_entry(const std::string& name, const json::Value& value, std::uint64_t base, const std::string& path) {
  const auto refuse = [&](const std::string& problem) {
    return bad_input(path + ": tensor " + named(name) + ": " + problem + kHint);
  };
  const json::Value *dtype = value.find("dtype"), *shape = value.find("shape"), *offsets = value.find("data_offsets");
  if (dtype == nullptr || shape == nullptr || offsets == nullptr || value.object().size() != 3) {
    throw refuse("expected an object with dtype, shape and data_offsets");
  }
  const unsigned bits = dtype->is_string() ? dtype_bits(dtype->string()) : 0;
  if (bits == 0) {
    const std::string text = dtype->is_string() ? dtype->string() : python_repr(*dtype);
    throw refuse("unknown dtype " + python_repr(json::Value(std::string(utf8::prefix(text, 40)))));
  }
  const auto numbers = [&](const char* field, const json::Value& list) {
    std::vector<std::int64_t> found;
    bool fine = list.is_array();
    if (fine) {
      for (const json::Value& item : list.array()) {
        fine = fine && item.is_integer() && item.integer() >= 0;
        if (fine) found.push_back(item.integer());
      }
    }
    if (!fine) throw refuse(std::string(field) + " must be an array of integers from 0 to 2**63 - 1");
    return found;
  };
  TensorEntry entry{name, dtype->string(), numbers("shape", *shape), 0, 0};
  const std::vector<std::int64_t> span = numbers("data_offsets", *offsets);
  if (entry.shape.size() > kMaxRank || span.size() != 2 || span[0] > span[1]) {
    throw refuse("expected at most " + std::to_string(kMaxRank) + " dimensions and data_offsets [start, stop]");
  }
  const std::uint64_t total = tensor_bits(bits, entry.shape), spanned = static_cast<std::uint64_t>(span[1] - span[0]);
  if (total % 8 != 0 || total / 8 != spanned) {
    const std::string takes = total == kTooMany ? "too many" : std::to_string(total / 8);
    throw refuse(entry.dtype + " " + python_repr(*shape) + " takes " + takes + " bytes, data_offsets span " +
                 std::to_string(spanned));
  }
  entry.start = base + static_cast<std::uint64_t>(span[0]);
  entry.stop = base + static_cast<std::uint64_t>(span[1]);
  return entry;
}

// Raise unless the tensors, in the order of their bytes, cover the file from `base` to its end.
void check_coverage(const std::vector<TensorEntry>& entries, std::uint64_t base, std::uint64_t size,
                    const std::string& path) {
  std::uint64_t end = base;
  for (const TensorEntry& entry : entries) {
    if (entry.start != end) {
      const char* problem = entry.start < end ? " overlaps" : " leaves a gap after";
      throw bad_input(path + ": tensor " + named(entry.name) + problem + " the bytes before it" + kHint);
    }
    end = entry.stop;
  }
  if (end > size) {
    throw bad_input(path + ": truncated: header describes " + std::to_string(end) + " bytes, file has " +
                    std::to_string(size) + kHint);
  }
  if (end < size) {
    throw bad_input(path + ": " + std::to_string(size - end) + " bytes after the last tensor; header describes " +
                    std::to_string(end) + kHint);
  }
}

}  // namespace

unsigned dtype_bits(std::string_view dtype) {
  for (const auto& [name, bits] : kDtypeBits) {
    if (name == dtype) return bits;
  }
  return 0;
}

TensorFile::TensorFile(const std::string& path) : map_(OpenedFile(path, "is the download complete?")) { read_header(); }

void TensorFile::read_header() {
  const std::string_view all = map_.bytes();
  const std::uint64_t size = all.size();
  if (size < 8) {
    throw bad_input(path() + ": truncated: " + std::to_string(size) + " bytes, a safetensors file has at least 8" +
                    kHint);
  }
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(all[i]);
  if (length > size - 8) {
    if (const auto kind = foreign_kind(all)) throw bad_input(path() + ": " + *kind);
  }
  if (length > kMaxHeader) {
    throw bad_input(path() + ": header of " + std::to_string(length) + " bytes; at most " + std::to_string(kMaxHeader) +
                    " are read" + kHint);
  }
  if (length > size - 8) {
    throw bad_input(path() + ": truncated: header describes " + std::to_string(8 + length) + " bytes, file has " +
                    std::to_string(size) + kHint);
  }
  const std::string_view text = all.substr(8, length);
  if (text.substr(0, 1) != "{") {
    throw bad_input(path() + ": header does not start with '{'; not a safetensors file" + kHint);
  }
  const json::Value header = parse_json_object(text, path() + ": header");
  for (const auto& [name, value] : header.object().members()) {
    if (name != "__metadata__") {
      entries_.push_back(read_entry(name, value, 8 + length, path()));
      continue;
    }
    bool fine = value.is_object();
    if (fine) {
      for (const auto& [key, item] : value.object().members()) {
        fine = fine && item.is_string();
        if (fine) metadata_.emplace_back(key, item.string());
      }
    }
    if (!fine) throw bad_input(path() + ": __metadata__ must map strings to strings" + kHint);
  }
  std::stable_sort(entries_.begin(), entries_.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::pair(a.start, a.stop) < std::pair(b.start, b.stop);
  });
  check_coverage(entries_, 8 + length, size, path());
}

const TensorEntry* TensorFile::find(std::string_view name) const {
  for (const TensorEntry& entry : entries_) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

const std::string* TensorFile::metadata(std::string_view name) const {
  for (const auto& [key, value] : metadata_) {
    if (key == name) return &value;
  }
  return nullptr;
}

std::string_view TensorFile::bytes(const TensorEntry& entry) const {
  return map_.bytes().substr(entry.start, entry.stop - entry.start);
}

}  // namespace l4::storage
