// Reads safetensors files: header first, tensors only as views of a memory map.
//
// The format [github.com/huggingface/safetensors, README "Format"]: 8 bytes little-endian header length N; N bytes of
// UTF-8 JSON that start with "{" and may end with spaces; then the tensors' bytes, row-major and little-endian. The
// JSON maps each name to {"dtype", "shape", "data_offsets": [start, stop]}, offsets counted from the end of the header;
// the key "__metadata__" maps strings to strings. No key appears twice; tensors cover the rest of the file without gaps
// or overlaps. A file is untrusted: all of that is checked before anything of it is used.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "storage/files.hpp"

namespace l4::storage {

// One tensor of a file.
struct TensorEntry {
  std::string name;
  std::string dtype;  // as safetensors spells it, such as "F32"
  std::vector<std::int64_t> shape;
  std::uint64_t start, stop;  // of its bytes in the file
};

// Bits of an element; 0 for a dtype that the format does not have.
unsigned dtype_bits(std::string_view dtype);

class TensorFile {
 public:
  // Raises Error: L4_BAD_INPUT for what is no such file, L4_STORAGE where reading fails.
  explicit TensorFile(const std::string& path);

  const std::string& path() const { return map_.file().path(); }
  const std::vector<TensorEntry>& entries() const { return entries_; }  // in the order of their bytes
  const TensorEntry* find(std::string_view name) const;                 // nullptr where there is none
  const std::string* metadata(std::string_view name) const;             // nullptr where there is none

  // The bytes of a tensor, which live as long as the file. They need not be aligned. Raises as MappedFile::bytes.
  std::string_view bytes(const TensorEntry& entry) const;

 private:
  void read_header();

  MappedFile map_;
  std::vector<TensorEntry> entries_;
  std::vector<std::pair<std::string, std::string>> metadata_;
};

}  // namespace l4::storage
